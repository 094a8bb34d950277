"""What a backbone makes of the prepared images: computed once, by all cores, and kept beside the data."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.dataset import Split, cache_folder, decode_split, is_cached, load_split, written_whole
from model.dataset_info import DatasetInfo
from model.errors import InputError
from model.export import convert_to_litert
from model.litert import InterpreterPool
from model.lookahead import map_ahead
from model.preprocess import brightness
from model.spec import TrainConfig
from model.strategy import has_gpu
from model.training_loop import Reporter

CHUNK = 256
CORES = os.cpu_count() or 1
Chunk = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


class Features(NamedTuple):
    """What a backbone makes of a split.

    Attributes:
        values: float32[images, channels], pooled features.
        labels: int64[images], index of the class.
        brightness: float32[images], mean of the pixels, in [0, 255].
    """

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    brightness: npt.NDArray[np.float32]


class FeatureExtractor:
    """Computes features with one backbone, on one device.

    Args:
        backbone: pixels to features, float32, whose variables lie on one device.
        config: names the backbone and the image size.
        info: the prepared data.
        reporter: told how far it is.
    """

    def __init__(self, backbone: Any, config: TrainConfig, info: DatasetInfo, reporter: Reporter) -> None:
        self._backbone = backbone
        self._config = config
        self._info = info
        self._reporter = reporter
        self._pool: InterpreterPool | None = None

    def cached(self, name: str) -> Features:
        """Features of a split, from the cache where the same weights have seen the same data before.

        Raises:
            InputError: the shards or the cache cannot be read.
        """
        digest = hashlib.sha256(f"{self._config.backbone} {self._config.image_size}".encode())
        for weight in self._backbone.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        path = cache_folder(self._info) / f"{name}-features-{digest.hexdigest()[:16]}.npz"
        if path.exists():
            self._reporter.stage(f"features of the {name} split: from the cache")
            try:
                with np.load(path) as stored:
                    return Features(stored["values"], stored["labels"], stored["brightness"])
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                raise InputError(f"the cache {path.parent} is damaged: remove it and train again") from error
        features = self.computed(name)
        with written_whole(path) as unfinished:
            np.savez(unfinished, **features._asdict())
        return features

    def computed(self, name: str) -> Features:
        """Features of a split, each image looked at now."""
        advance = self._reporter.steps(f"features of the {name} split", self._info.count(name))
        size = self._config.image_size
        if is_cached(self._info, name, size):
            chunks = _chunks_of(load_split(self._info, name, size))
        else:
            chunks = decode_split(self._info, name, size)
        return _gathered(self._predicted(chunks), advance)

    def _predicted(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, npt.NDArray[np.float32]]]:
        if has_gpu():
            return ((chunk, self._backbone.predict_on_batch(chunk[0])) for chunk in chunks)
        # LiteRT runs a network several times faster than Keras does on a CPU.
        self._pool = self._pool or InterpreterPool(convert_to_litert(self._backbone), CORES)
        return _by_litert(self._pool, chunks, "features")


def predict_by_litert(model: bytes, split: Split) -> npt.NDArray[np.float32]:
    """Probabilities float32[images, classes] of a split by a LiteRT file with that output, on all cores."""
    pool = InterpreterPool(model, CORES)
    return np.concatenate([outputs for _, outputs in _by_litert(pool, _chunks_of(split), "probabilities")])


def _by_litert(
    pool: InterpreterPool, chunks: Iterable[Chunk], output: str
) -> Iterator[tuple[Chunk, npt.NDArray[np.float32]]]:
    def predict(chunk: Chunk) -> tuple[Chunk, npt.NDArray[np.float32]]:
        pixels = chunk[0]
        starts = range(0, len(pixels), pool.batch_size)
        return chunk, np.concatenate([pool.run(pixels[start : start + pool.batch_size])[output] for start in starts])

    return map_ahead(predict, chunks, CORES)


def _chunks_of(split: Split) -> Iterator[Chunk]:
    for start in range(0, len(split.labels), CHUNK):
        yield split.pixels[start : start + CHUNK], split.labels[start : start + CHUNK]


def _gathered(predicted: Iterable[tuple[Chunk, npt.NDArray[np.float32]]], advance: Callable[[int], None]) -> Features:
    values, all_labels, all_brightness = [], [], []
    for (pixels, labels), features in predicted:
        values.append(np.asarray(features, np.float32))
        all_labels.append(labels)
        all_brightness.append(np.array([brightness(image) for image in pixels], np.float32))
        advance(len(labels))
    return Features(np.concatenate(values), np.concatenate(all_labels), np.concatenate(all_brightness))
