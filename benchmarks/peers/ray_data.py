"""Ray Data: ``read_images`` and ``map_batches`` with a class, as Ray's guide "Working with Images" writes it."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import ray

from benchmarks.task import Task, loading, report, slowest_load


class Predictor:
    """Holds the network; Ray makes one per actor."""

    def __init__(self, task: Task) -> None:
        with loading(task.out):
            import tensorflow as tf

            self._tf = tf
            self._model = tf.saved_model.load(task.bundle)
            self._predict = self._model.signatures["serving_default"]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        outputs = self._predict(pixels=self._tf.constant(np.stack(batch["image"])))
        return {"path": batch["path"], "probabilities": outputs["probabilities"].numpy()}


def main(task: Task) -> None:
    ray.init(include_dashboard=False, log_to_driver=False)
    size = (task.image_size, task.image_size)
    images = ray.data.read_images(task.images, mode="RGB", size=size, include_paths=True)
    # One core is left for reading; TensorFlow takes both in its one actor.
    actors = max(1, (os.cpu_count() or 2) // 2)
    predictions = images.map_batches(
        Predictor,
        fn_constructor_args=(task,),
        batch_size=32,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    started = time.perf_counter()
    predictions.write_parquet(task.answers)
    seconds = time.perf_counter() - started
    ray.shutdown()
    report(task.count, seconds - slowest_load(task.out))


if __name__ == "__main__":
    main(Task.from_arguments())
