"""Daft: download, decode_image, resize and a class with a batch method, as its guides on multimodal data write it.

With the engine ``savedmodel`` the class runs the SavedModel, with ``litert`` this project's own LiteRT file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import daft
import numpy as np
from daft.functions import decode_image, download, resize

from benchmarks.task import Task, loading, report, slowest_load

Predict = Callable[[Any], Any]


def saved_model(task: Task) -> Predict:
    """Predict by TensorFlow; it takes all cores for one batch."""
    import tensorflow as tf

    model = tf.saved_model.load(task.bundle)
    signature = model.signatures["serving_default"]

    def predict(pixels: Any) -> Any:
        # The model goes with its signature, which does not keep it alive.
        assert model is not None
        return signature(pixels=tf.constant(pixels))["probabilities"].numpy()

    return predict


def litert(task: Task) -> Predict:
    """Predict by one interpreter per core: Daft may call from as many threads."""
    from model.litert import InterpreterPool

    pool = InterpreterPool(os.path.join(task.bundle, "model.tflite"), os.cpu_count() or 1)

    def predict(pixels: Any) -> Any:
        return pool.run(pixels)["probabilities"]

    return predict


ENGINES = {"savedmodel": (saved_model, 32), "litert": (litert, 8)}
"""Of each engine: how to open it, and images per batch."""


def make_classifier(batch_size: int) -> Any:
    """The class, for batches of a size."""

    @daft.cls
    class Classifier:
        def __init__(self, task: Task) -> None:
            with loading(task.out):
                self._predict = ENGINES[task.engine][0](task)

        @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=batch_size)
        def classify(self, images: daft.Series) -> Any:
            return self._predict(np.stack(images.to_pylist())).tolist()

    return Classifier


def main(task: Task) -> None:
    classifier = make_classifier(ENGINES[task.engine][1])(task)
    images = daft.from_glob_path(os.path.join(task.images, "*", "*"))
    decoded = decode_image(download(images["path"]), mode="RGB")
    images = images.with_column("image", resize(decoded, task.image_size, task.image_size))
    images = images.with_column("probabilities", classifier.classify(images["image"]))
    started = time.perf_counter()
    images.select("path", "probabilities").write_parquet(task.answers)
    report(task.count, time.perf_counter() - started - slowest_load(task.out))


if __name__ == "__main__":
    main(Task.from_arguments())
