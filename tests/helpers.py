"""What several tests share: small images, their files, and commands run as a user runs them."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from model.synthetic import BINARY_CLASSES, draw_image
from pipelines import tfrecord

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"


def jpeg(seed: int, size: int = 32) -> bytes:
    """A small random JPEG; equal seeds give equal bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def write_image_folder(root: Path, count: int, classes: tuple[str, ...] = BINARY_CLASSES, start: int = 0) -> None:
    """Synthetic images, one folder per class."""
    for index in range(start, start + count):
        image = draw_image(index, classes=classes)
        path = root / image.class_name / Path(image.filename).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.encoded)


def write_tfrecord_shards(root: Path, shards: int, images_per_shard: int) -> None:
    """TFRecord shards of labelled synthetic images."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        examples = []
        for position in range(images_per_shard):
            image = draw_image(shard * images_per_shard + position)
            examples.append(
                tfrecord.frame(
                    tfrecord.encode_example(
                        {
                            tfrecord.IMAGE_ENCODED: image.encoded,
                            tfrecord.IMAGE_TEXT: image.class_name,
                            tfrecord.IMAGE_FILENAME: image.filename,
                        }
                    )
                )
            )
        (root / f"test-{shard:05d}-of-{shards:05d}.tfrecord").write_bytes(b"".join(examples))


def command(job: str, *arguments: object) -> list[str]:
    """The command line of a job."""
    return [sys.executable, "-m", f"jobs.{job}", *map(str, arguments)]


def run_job(job: str, *arguments: object, cwd: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a job as a user does, in a process of its own, and check its exit code."""
    result = subprocess.run(
        command(job, *arguments), cwd=cwd or REPOSITORY, capture_output=True, text=True, env=environment()
    )
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def environment() -> dict[str, str]:
    """This process' environment, with the packages of the checkout to be found from any folder."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def table_digests(run: Path) -> dict[str, str]:
    """SHA-256 of every part of a run's tables."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("predictions", "failures", "thumbnails")
        for path in sorted((run / table).glob("*"))
    }
