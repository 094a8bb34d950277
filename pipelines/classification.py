"""Classify one work unit: its images streamed through decoding and prediction in threads, its tables out."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.engine import Engine, decide
from model.lookahead import chunked, map_ahead
from model.metrics import MetricCounts, count
from model.preprocess import DecodeError, brightness, encode_thumbnail, preprocess
from model.spec import ModelSpec
from pipelines.records import (
    FAILURE_SCHEMA,
    PREDICTION_SCHEMA,
    THUMBNAIL_SCHEMA,
    Failure,
    ImageRecord,
    ShardError,
)

THUMBNAILS_PER_UNIT = 12


@dataclasses.dataclass(frozen=True)
class UnitTables:
    """What became of a work unit; every image read is in exactly one of ``predictions`` and ``failures``.

    Attributes:
        predictions, failures, thumbnails: tables of the schemas in :mod:`pipelines.records`, rows in input order.
        counts: metric counts over the predictions.
        shard_error: why the shard could not be read to its end, or None.
        seconds: wall time of the work.
    """

    predictions: pa.Table
    failures: pa.Table
    thumbnails: pa.Table
    counts: MetricCounts
    shard_error: ShardError | None
    seconds: float


def classify(
    images: Iterable[ImageRecord | Failure],
    engine: Engine,
    spec: ModelSpec,
    threads: int,
    on_images: Callable[[int], None] = lambda _: None,
) -> UnitTables:
    """Classify the images of a work unit.

    A bad image becomes a failure, never an exception; a shard that ends early becomes ``shard_error``, and what was
    read before it is kept.

    Args:
        images: as :func:`pipelines.units.read_unit_images` yields them.
        engine: the network.
        spec: its description.
        threads: threads that decode and predict.
        on_images: called with the number of images each time some are done.
    """
    started = time.perf_counter()
    rows: dict[str, list[Any]] = {name: [] for name in PREDICTION_SCHEMA.names}
    failures: list[Failure] = []
    thumbnails = _Thumbnails()
    reader = _UntilShardError(images)

    def classify_chunk(chunk: list[ImageRecord | Failure]) -> _Chunk:
        return _classify_chunk(chunk, engine, spec)

    for chunk in map_ahead(classify_chunk, chunked(reader, engine.batch_size), threads):
        for name, values in chunk.columns.items():
            rows[name].extend(values)
        failures.extend(chunk.failures)
        thumbnails.offer(chunk, spec)
        on_images(chunk.size)

    probabilities = np.array(rows["probabilities"], np.float32).reshape(-1, len(spec.classes))
    predicted = decide(probabilities, spec)
    counts = count(spec.classes, rows["label"], predicted, probabilities)
    rows["model_fingerprint"] = [spec.fingerprint] * len(predicted)
    return UnitTables(
        predictions=pa.table(
            [pa.array(rows[field.name], field.type) for field in PREDICTION_SCHEMA], PREDICTION_SCHEMA
        ),
        failures=pa.Table.from_pylist([dataclasses.asdict(failure) for failure in failures], FAILURE_SCHEMA),
        thumbnails=thumbnails.table(),
        counts=counts,
        shard_error=reader.error,
        seconds=time.perf_counter() - started,
    )


@dataclasses.dataclass(frozen=True)
class _Chunk:
    size: int
    columns: dict[str, list[Any]]
    failures: list[Failure]
    pixels: npt.NDArray[np.uint8]


class _UntilShardError(Iterable[ImageRecord | Failure]):
    """Ends where the shard does, and keeps the reason."""

    def __init__(self, images: Iterable[ImageRecord | Failure]) -> None:
        self._images = images
        self.error: ShardError | None = None

    def __iter__(self) -> Iterator[ImageRecord | Failure]:
        try:
            yield from self._images
        except ShardError as error:
            self.error = error


def _classify_chunk(chunk: list[ImageRecord | Failure], engine: Engine, spec: ModelSpec) -> _Chunk:
    records: list[ImageRecord] = []
    failures: list[Failure] = []
    sizes: list[tuple[int, int]] = []
    pixels = np.empty((len(chunk), spec.image_size, spec.image_size, 3), np.uint8)
    for item in chunk:
        if isinstance(item, Failure):
            failures.append(item)
            continue
        try:
            image = preprocess(item.encoded, spec.image_size)
        except DecodeError as error:
            failures.append(Failure(item.image_id, item.source, item.position, "decode", error.code, str(error)))
            continue
        pixels[len(records)] = image.pixels
        records.append(item)
        sizes.append((image.width, image.height))
    pixels = pixels[: len(records)]
    probabilities = engine.predict(pixels).probabilities if records else np.empty((0, len(spec.classes)), np.float32)
    predicted = decide(probabilities, spec)
    columns: dict[str, list[Any]] = {
        "image_id": [record.image_id for record in records],
        "source": [record.source for record in records],
        "position": [record.position for record in records],
        "label": [record.label for record in records],
        "predicted_class": [spec.classes[index] for index in predicted],
        "score": probabilities[np.arange(len(records)), predicted].tolist(),
        "probabilities": probabilities.tolist(),
        "brightness": [brightness(image) for image in pixels],
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "image_sha256": [hashlib.sha256(record.encoded).hexdigest() for record in records],
    }
    return _Chunk(len(chunk), columns, failures, pixels)


class _Thumbnails:
    """The images of a unit that the report may show: the most confident mistakes, or unlabelled, the least certain."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, dict[str, Any], npt.NDArray[np.uint8]]] = []
        self._offered = 0

    def offer(self, chunk: _Chunk, spec: ModelSpec) -> None:
        columns = chunk.columns
        for index, label in enumerate(columns["label"]):
            self._offered += 1
            predicted, score = columns["predicted_class"][index], columns["score"][index]
            if label is None:
                interest = -score
            elif label in spec.classes and label != predicted:
                interest = score
            else:
                continue
            # The running number breaks ties, so that the choice is the same in every run.
            key = (interest, -self._offered)
            if len(self._heap) == THUMBNAILS_PER_UNIT and key <= self._heap[0][:2]:
                continue
            row = {
                "image_id": columns["image_id"][index],
                "label": label,
                "predicted_class": predicted,
                "score": score,
            }
            entry = (*key, row, chunk.pixels[index].copy())
            if len(self._heap) < THUMBNAILS_PER_UNIT:
                heapq.heappush(self._heap, entry)
            else:
                heapq.heapreplace(self._heap, entry)

    def table(self) -> pa.Table:
        entries = sorted(self._heap, key=lambda entry: entry[:2], reverse=True)
        rows = [{**row, "jpeg": encode_thumbnail(pixels)} for _, _, row, pixels in entries]
        return pa.Table.from_pylist(rows, THUMBNAIL_SCHEMA)
