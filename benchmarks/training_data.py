"""The images of a training benchmark: as prepared shards, and the same splits as folders of image files."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from benchmarks.environments import last_line
from benchmarks.images import REPOSITORY, choose_images
from model.dataset_info import SPLITS, DatasetInfo, read_dataset
from model.errors import InputError
from model.spec import TrainConfig
from pipelines.tfrecord import IMAGE_ENCODED, IMAGE_FILENAME, IMAGE_LABEL, decode_example, read_records

KERAS_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
"""What ``keras.utils.image_dataset_from_directory`` reads; it passes over other files without a word."""


def find_weights(weights: str) -> str:
    """``imagenet``, ``none``, or the absolute path of a file, for processes in other folders.

    Raises:
        InputError: there is no such file.
    """
    if weights in ("imagenet", "none"):
        return weights
    if not os.path.isfile(weights):
        raise InputError(f"there is no weights file {weights}; give --weights imagenet, none or a path")
    return os.path.abspath(weights)


def images_digest(source: Path, chosen: Sequence[Path]) -> str:
    """SHA-256 (hexadecimal) over the paths and sizes of images."""
    digest = hashlib.sha256()
    for path in chosen:
        digest.update(f"{path.relative_to(source)} {path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def limited_source(source: Path, limit: int | None, out: Path) -> Path:
    """The folder of images itself, or a copy of ``limit`` of them in ``out``, made once.

    Raises:
        InputError: there are no images.
    """
    chosen = choose_images(source, limit)
    if limit is None:
        return source
    copies = out / f"images-{limit}"
    if not copies.exists():
        unfinished = copies.with_name(f"{copies.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for path in chosen:
            copy = unfinished / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        unfinished.rename(copies)
    return copies


def prepare_data(source: Path, data: Path, recipe: TrainConfig) -> DatasetInfo:
    """Prepare images with a recipe's own split; data that was prepared so before stays as it is.

    Raises:
        InputError: jobs.prepare refused; the message is its own.
    """
    split = "/".join(f"{part:g}" for part in recipe.split)
    command = [sys.executable, "-m", "jobs.prepare", "--source", str(source), "--out", str(data), "--split", split]
    command += ["--seed", str(recipe.split_seed)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"jobs.prepare failed on {source}: {last_line(done.stderr).removeprefix('crackscan: ')}")
    return read_dataset(str(data))


def write_image_folders(info: DatasetInfo, folder: Path) -> Path:
    """Write the images of prepared shards, byte for byte, as ``folder/<split>/<class>/<number>.jpg``, once.

    Raises:
        InputError: a shard holds an image that Keras would leave out.
    """
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split in SPLITS:
        # A class without images in a split still has its number among the classes.
        for name in info.classes:
            (unfinished / split / name).mkdir(parents=True)
        written: Counter[str] = Counter()
        for path in info.shard_paths(split):
            with open(path, "rb") as stream:
                for record in read_records(stream):
                    example = decode_example(record)
                    name = info.classes[cast(int, example[IMAGE_LABEL][0])]
                    original = cast(bytes, example[IMAGE_FILENAME][0]).decode()
                    extension = os.path.splitext(original)[1].lower()
                    if extension not in KERAS_EXTENSIONS:
                        raise InputError(f"Keras cannot read {original} from a folder: give JPEG, PNG, BMP or GIF")
                    file = unfinished / split / name / f"{written[name]:06d}{extension}"
                    file.write_bytes(cast(bytes, example[IMAGE_ENCODED][0]))
                    written[name] += 1
    unfinished.rename(folder)
    return folder
