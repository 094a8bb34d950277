"""Prepared shards for training: each image decoded once, by :mod:`model.preprocess`, into a cache of uint8 pixels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model.dataset_info import DatasetInfo
from model.errors import InputError
from model.lookahead import chunked, map_ahead
from model.preprocess import DecodeError, preprocess

CHUNK = 32


class Inputs(Protocol):
    """What a network is fed with, one entry per image: an array, or what looks like one to index arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]: ...


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


def sample_split(info: DatasetInfo, name: str, size: int, count: int) -> Split:
    """The first images of a split, ``count`` or fewer, decoded: shards hold images in the order of their hashes."""
    pixels, labels = [], []
    with closing(decode_split(info, name, size)) as chunks:
        for chunk_pixels, chunk_labels in chunks:
            pixels.append(chunk_pixels)
            labels.append(chunk_labels)
            if CHUNK * len(pixels) >= count:
                break
    return Split(name, np.concatenate(pixels)[:count], np.concatenate(labels)[:count])


def is_cached(info: DatasetInfo, name: str, size: int) -> bool:
    """Whether :func:`load_split` finds a split in the cache."""
    return _cache_files(info, name, size)[1].exists()


def _cache_files(info: DatasetInfo, name: str, size: int) -> tuple[Path, Path]:
    folder = cache_folder(info)
    return folder / f"{name}-{size}-pixels.npy", folder / f"{name}-{size}-labels.npy"


def decode_split(
    info: DatasetInfo, name: str, size: int
) -> Generator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]], None, None]:
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


def global_batches(count: int, batch_size: int, order_seed: tuple[int, int] | None = None) -> npt.NDArray[np.int64]:
    """Which images make up each global batch of one pass: int64[steps, batch_size], the last one padded with -1.

    Args:
        count: images of the split.
        batch_size: images per step over all replicas.
        order_seed: seed and epoch, which together decide the order, so that an epoch has the same one whether the
            training was interrupted before it or not; None keeps the split's order.
    """
    order = np.arange(count) if order_seed is None else np.random.default_rng(order_seed).permutation(count)
    steps = -(-count // batch_size)
    padded = np.full(steps * batch_size, -1, np.int64)
    padded[:count] = order
    return padded.reshape(steps, batch_size)


def distribute(strategy: Any, inputs: Inputs, labels: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> Any:
    """Feed the replicas of a strategy: each global batch is shared out evenly, in order.

    Args:
        strategy: a tf.distribute strategy.
        inputs: one entry per image, taken by index arrays.
        labels: int64[images].
        indices: int64[steps, global batch], as of :func:`global_batches`; a multiple of the replicas per batch.

    Returns:
        A distributed data set of (inputs, labels int64[batch], weights float32[batch]) per replica. The weights of a
        global batch sum to 1; padding has weight 0.
    """
    replicas = strategy.num_replicas_in_sync
    per_replica = indices.shape[1] // replicas
    first = np.asarray(inputs[indices[:1, 0]])

    def gather(chosen: npt.NDArray[np.int64]) -> tuple[Any, npt.NDArray[np.int64]]:
        real = np.maximum(chosen, 0)
        return inputs[real], labels[real]

    def load(chosen: Any, weights: Any) -> tuple[Any, Any, Any]:
        # One call into Python per batch only: a call per image would queue on the interpreter lock.
        batch, batch_labels = tf.numpy_function(gather, [chosen], (first.dtype, tf.int64))
        return (
            tf.ensure_shape(batch, (per_replica, *first.shape[1:])),
            tf.ensure_shape(batch_labels, (per_replica,)),
            weights,
        )

    def of_pipeline(context: Any) -> Any:
        pipelines, own = context.num_input_pipelines, context.input_pipeline_id
        real = (indices >= 0).astype(np.float32)
        weights = real / real.sum(axis=1, keepdims=True)
        own_indices, own_weights = (
            values.reshape(len(values), pipelines, -1)[:, own].reshape(-1, per_replica) for values in (indices, weights)
        )
        batches = tf.data.Dataset.from_tensor_slices((own_indices, own_weights))
        return batches.map(load).prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(of_pipeline)


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
