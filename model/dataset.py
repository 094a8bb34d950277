"""Prepared shards for training: each image decoded once, by :mod:`model.preprocess`, into a cache of uint8 pixels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model.dataset_info import DatasetInfo
from model.errors import InputError
from model.lookahead import chunked, map_ahead
from model.preprocess import DecodeError, preprocess

CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of the prepared data, decoded.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        pixels: uint8[images, size, size, 3], mapped from disk.
        labels: int64[images], index of the class.
    """

    name: str
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def read_examples(paths: Sequence[str]) -> Iterator[tuple[bytes, int]]:
    """Encoded images and class indices of TFRecord shards, in order.

    Raises:
        InputError: a shard is missing or damaged.
    """
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    examples = tf.data.TFRecordDataset(list(paths)).batch(CHUNK).map(lambda batch: tf.io.parse_example(batch, features))
    try:
        for batch in examples.as_numpy_iterator():
            yield from zip(batch["image/encoded"], map(int, batch["image/class/label"]), strict=True)
    except (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.InvalidArgumentError) as error:
        raise InputError(f"cannot read the prepared shards: {error.message}; run jobs.prepare again") from error


def load_split(info: DatasetInfo, name: str, size: int, progress: Callable[[int], None] | None = None) -> Split:
    """A split at one image size, from the cache beside the prepared data, which is filled first where it is not there.

    Args:
        info: the prepared data.
        name: ``train``, ``val`` or ``test``.
        size: side of the square images in pixels.
        progress: called with the number of images each time some are decoded.

    Raises:
        InputError: the shards or the cache cannot be read.
    """
    pixels_path, labels_path = _cache_files(info, name, size)
    if not labels_path.exists():
        count = info.count(name)
        with written_whole(pixels_path) as unfinished:
            pixels = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
            labels = np.zeros(count, np.int64)
            filled = 0
            for chunk_pixels, chunk_labels in decode_split(info, name, size):
                pixels[filled : filled + len(chunk_labels)] = chunk_pixels
                labels[filled : filled + len(chunk_labels)] = chunk_labels
                filled += len(chunk_labels)
                if progress:
                    progress(len(chunk_labels))
            pixels.flush()
        # The labels come last: where they are, the pixels are whole.
        with written_whole(labels_path) as unfinished:
            np.save(unfinished, labels)
    try:
        return Split(name, np.load(pixels_path, mmap_mode="r"), np.load(labels_path))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the cache {pixels_path.parent} is damaged: remove it and train again") from error


def is_cached(info: DatasetInfo, name: str, size: int) -> bool:
    """Whether :func:`load_split` finds a split in the cache."""
    return _cache_files(info, name, size)[1].exists()


def _cache_files(info: DatasetInfo, name: str, size: int) -> tuple[Path, Path]:
    folder = cache_folder(info)
    return folder / f"{name}-{size}-pixels.npy", folder / f"{name}-{size}-labels.npy"


def decode_split(
    info: DatasetInfo, name: str, size: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Decode a split in chunks: pixels uint8[chunk, size, size, 3] and labels int64[chunk], in the shards' order.

    Raises:
        InputError: a shard is damaged or holds an unreadable image, or they hold fewer or more images than
            ``dataset.json`` says.
    """

    def decode(chunk: list[tuple[bytes, int]]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        try:
            pixels = np.stack([preprocess(encoded, size).pixels for encoded, _ in chunk])
        except DecodeError as error:
            raise InputError(f"the prepared {name} shards hold an unreadable image: {error}; prepare again") from error
        return pixels, np.array([label for _, label in chunk], np.int64)

    count, expected = 0, info.count(name)
    for pixels, labels in map_ahead(decode, chunked(read_examples(info.shard_paths(name)), CHUNK), os.cpu_count() or 1):
        count += len(labels)
        if count > expected:
            break
        yield pixels, labels
    if count != expected:
        raise InputError(f"the {name} shards do not hold the {expected} images that dataset.json says: prepare again")


def batches(split: Split, batch_size: int, shuffle_seed: int | None = None, images: int | None = None) -> Any:
    """A tf.data.Dataset of (pixels uint8[batch, size, size, 3], labels int64[batch]).

    Args:
        split: the decoded images.
        batch_size: images per batch over all replicas.
        shuffle_seed: order the images anew in each epoch; None keeps the shards' order.
        images: as many in all: fewer than there are leave out the last ones, more repeat the last; None is all.
    """
    shape = split.pixels.shape[1:]

    def gather(indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return split.pixels[indices], split.labels[indices]

    def load(indices: Any) -> tuple[Any, Any]:
        pixels, labels = tf.numpy_function(gather, [indices], (tf.uint8, tf.int64))
        return tf.ensure_shape(pixels, (None, *shape)), tf.ensure_shape(labels, (None,))

    count = len(split.labels)
    wanted = count if images is None else images
    indices = tf.data.Dataset.range(count)
    if shuffle_seed is not None:
        indices = indices.shuffle(max(count, 1), seed=shuffle_seed, reshuffle_each_iteration=True)
    if wanted < count:
        indices = indices.take(wanted)
    elif wanted > count:
        indices = indices.concatenate(tf.data.Dataset.range(count - 1, count).repeat(wanted - count))
    # One call into Python per batch only: a call per image would queue on the interpreter lock.
    return _unsharded(indices.batch(batch_size).map(load).prefetch(tf.data.AUTOTUNE))


def _unsharded(dataset: Any) -> Any:
    # A source without files cannot be sharded by file: say so, rather than have every strategy warn about it.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def cache_folder(info: DatasetInfo) -> Path:
    """Where decoded pixels and features of this data are kept: ``DATA/_cache/<fingerprint>``."""
    folder = Path(info.data) / "_cache" / info.fingerprint[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the cache {folder}: {error.strerror}") from error
    return folder


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give another name to write a cache file under, and put the file in its place when the body has ended well."""
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
