"""The limits: the same decoding and engine in a plain loop, and the engine alone on decoded batches.

Started as ``python -m benchmarks.bare TASK`` or, for the engine alone, ``python -m benchmarks.bare TASK decoded``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.task import Task, report, write_answers
from model.bundle import Bundle, open_bundle
from model.engine import Engine, open_engine
from model.lookahead import chunked
from model.preprocess import DecodeError, preprocess
from pipelines.records import ImageRecord
from pipelines.units import InputConfig, plan_units, read_unit_images

DECODED_IMAGES = 1024
"""Images that the engine alone is given again and again; all of them would fill the memory."""

Item = TypeVar("Item")
Answers = list[tuple[list[str], npt.NDArray[np.float32]]]


def bare_loop(task: Task) -> None:
    """Read shards, decode and predict in one thread per core; no Beam, no tables."""
    bundle, engine = _open(task)
    answers: Answers = []
    started = time.perf_counter()

    def work(chunk: list[ImageRecord]) -> None:
        names, pixels = _decode(chunk, bundle.spec.image_size)
        answers.append((names, engine.predict(pixels).probabilities))

    _in_threads(work, chunked(_records(task, bundle), engine.batch_size))
    _finish(task, answers, sum(len(names) for names, _ in answers), time.perf_counter() - started)


def engine_alone(task: Task) -> None:
    """Predict as many images as there are, from a few that were decoded before."""
    bundle, engine = _open(task)
    decoded: list[tuple[list[str], npt.NDArray[np.uint8]]] = []
    for chunk in chunked(_records(task, bundle), engine.batch_size):
        decoded.append(_decode(chunk, bundle.spec.image_size))
        if sum(len(names) for names, _ in decoded) >= DECODED_IMAGES:
            break
    answers: Answers = [(names, engine.predict(pixels).probabilities) for names, pixels in decoded]
    images = 0

    def batches() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal images
        while images < task.count:
            for _, pixels in decoded:
                images += len(pixels)
                yield pixels

    started = time.perf_counter()
    _in_threads(lambda pixels: engine.predict(pixels), batches())
    _finish(task, answers, images, time.perf_counter() - started)


def _open(task: Task) -> tuple[Bundle, Engine]:
    bundle = open_bundle(task.bundle)
    return bundle, open_engine(task.engine, bundle, os.cpu_count())


def _records(task: Task, bundle: Bundle) -> Iterator[ImageRecord]:
    for unit in plan_units(InputConfig(task.shards)):
        for image in read_unit_images(unit, bundle.spec.classes):
            if isinstance(image, ImageRecord):
                yield image


def _decode(chunk: list[ImageRecord], size: int) -> tuple[list[str], npt.NDArray[np.uint8]]:
    names: list[str] = []
    pixels = np.empty((len(chunk), size, size, 3), np.uint8)
    for record in chunk:
        try:
            pixels[len(names)] = preprocess(record.encoded, size).pixels
        except DecodeError:
            continue
        names.append(record.image_id)
    return names, pixels[: len(names)]


def _in_threads(work: Callable[[Item], object], items: Iterator[Item]) -> None:
    """Each thread takes the next item when it is free: there is no cheaper way to share them out."""
    lock = threading.Lock()

    def loop() -> None:
        while True:
            with lock:
                item = next(items, None)
            if item is None:
                return
            work(item)

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(loop) for _ in range(threads)]:
            future.result()


def _finish(task: Task, answers: Answers, images: int, seconds: float) -> None:
    write_answers(
        task,
        (name for names, _ in answers for name in names),
        (row for _, probabilities in answers for row in probabilities.tolist()),
    )
    report(images, seconds)


if __name__ == "__main__":
    if sys.argv[2:] == ["decoded"]:
        engine_alone(Task.from_arguments())
    else:
        bare_loop(Task.from_arguments())
