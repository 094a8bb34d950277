"""Spark: ``predict_batch_udf`` over the files' bytes, as its reference writes it.

The network's input could come as a column of numbers, the reference's way; at 76,800 numbers an image the bytes of the
file are the faster column by far, so they are decoded where they are predicted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType

from benchmarks.task import Task, loading, report, slowest_load


def make_predict(task: Task) -> Callable[[], Callable[[Any], Any]]:
    """What Spark calls in each Python worker."""

    def make_predict_fn() -> Callable[[Any], Any]:
        with loading(task.out):
            import io

            import numpy as np
            import tensorflow as tf
            from PIL import Image

            model = tf.saved_model.load(task.bundle)
            signature = model.signatures["serving_default"]
        size = (task.image_size, task.image_size)

        def decode(encoded: bytes) -> Any:
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
            return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

        def predict(contents: Any) -> Any:
            # The model goes with its signature, which does not keep it alive.
            assert model is not None
            pixels = np.stack([decode(encoded) for encoded in contents])
            return signature(pixels=tf.constant(pixels))["probabilities"].numpy()

        return predict

    return make_predict_fn


def main(task: Task) -> None:
    spark = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false").getOrCreate()
    classify = predict_batch_udf(make_predict(task), return_type=ArrayType(FloatType()), batch_size=32)
    images = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(task.images)
    started = time.perf_counter()
    images.select("path", classify("content").alias("probabilities")).write.parquet(task.answers)
    seconds = time.perf_counter() - started
    spark.stop()
    report(task.count, seconds - slowest_load(task.out))


if __name__ == "__main__":
    main(Task.from_arguments())
