"""The images of a benchmark: the same ones as files in folders and as TFRecord shards, made once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environments import cache_folder
from model.errors import InputError
from pipelines.shards import is_image_name

REPOSITORY = Path(__file__).parent.parent
READY = ".ready"
IMAGES_PER_SHARD = 250
"""About so many: a few images must not end up in 48 shards of six, which would measure the opening of files."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """The images.

    Attributes:
        images: folder with a subfolder per class and nothing else.
        shards: folder of TFRecord files, prepared from it.
        count: number of images.
        digest: of their paths and sizes.
    """

    images: str
    shards: str
    count: int
    digest: str


def choose_images(source: Path, limit: int | None) -> list[Path]:
    """Image files in the subfolders of a folder, sorted; ``limit`` of them spread evenly over all.

    Raises:
        InputError: there are none.
    """
    found = sorted(path for path in source.glob("*/*") if path.is_file() and is_image_name(path.name))
    if not found:
        raise InputError(f"no images in subfolders of {source}: --images takes a folder with a subfolder per class")
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


def image_set(source: Path, limit: int | None) -> ImageSet:
    """Copy the chosen images into the cache and prepare shards of them, unless both are there already.

    Raises:
        InputError: there are no images, or they could not be prepared.
    """
    chosen = choose_images(source, limit)
    digest = _digest(source, chosen)
    folder = cache_folder() / f"images-{digest[:16]}"
    images, shards = folder / "images", folder / "data"
    if not (folder / READY).exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"preparing {len(chosen):,} images in {folder}: only once", file=sys.stderr, flush=True)
        for path in chosen:
            copy = images / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        per_split = min(16, max(1, len(chosen) // (3 * IMAGES_PER_SHARD)))
        paths = ["--source", str(images), "--out", str(shards)]
        command = [sys.executable, "-m", "jobs.prepare", *paths, "--shards", str(per_split)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"jobs.prepare failed on {images}: {done.stderr.strip()}")
        (folder / READY).touch()
    return ImageSet(str(images), str(shards), len(chosen), digest)


def read_once(folders: Sequence[str]) -> None:
    """Read every file, so that the first contender does not pay for the disk."""
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                Path(root, name).read_bytes()


def _digest(source: Path, chosen: Sequence[Path]) -> str:
    digest = hashlib.sha256(str(source).encode())
    for path in chosen:
        digest.update(f"\n{path.relative_to(source)} {path.stat().st_size}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
