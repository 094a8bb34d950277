"""Stock Beam: RunInference with TFModelHandlerTensor, decoded tensors as elements.

It follows Beam's own example for images, ``tensorflow_imagenet_segmentation.py``: a text file of names, a Map that
decodes, the handler with keys, a text file of results. The handler opens models by ``keras.models.load_model``, which
refuses a SavedModel since Keras 3: it gets ``model.keras``. It imports tensorflow_hub, which Beam does not bring.
"""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerTensor
from PIL import Image

from benchmarks.task import Task, report

IN_PROCESS_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""What Beam's DirectRunner becomes where it cannot download Prism; named, so that it asks nobody."""

STARTED = "started"
MAXIMUM_BATCH = 32
"""As Keras' predict; without a maximum the batches grow for as long as larger ones seem faster."""


def read_image(path: str, task: Task) -> tuple[str, Any]:
    """Key and tensor of an image; also notes when the first one is read, which is after the network was loaded."""
    started = Path(task.out, STARTED)
    if not started.exists():
        started.write_text(repr(time.time()))
    image = Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")
    image = image.resize((task.image_size, task.image_size), Image.Resampling.BILINEAR)
    return path, tf.convert_to_tensor(np.asarray(image))


def to_line(element: tuple[str, PredictionResult]) -> str:
    """One line of the result."""
    path, prediction = element
    return json.dumps({"path": path, "probabilities": prediction.inference["probabilities"].numpy().tolist()})


def main(task: Task) -> None:
    names = os.path.join(task.out, "names.txt")
    paths = sorted(str(path) for path in Path(task.images).glob("*/*"))
    Path(names).write_text("\n".join(paths))
    handler = KeyedModelHandler(
        TFModelHandlerTensor(os.path.join(task.bundle, "model.keras"), max_batch_size=MAXIMUM_BATCH)
    )
    with beam.Pipeline(runner=IN_PROCESS_RUNNER) as pipeline:
        (
            pipeline
            | "ReadNames" >> beam.io.ReadFromText(names)
            | "ReadImage" >> beam.Map(read_image, task)
            | "RunInference" >> RunInference(handler)
            | "ToLine" >> beam.Map(to_line)
            | "Write" >> beam.io.WriteToText(os.path.join(task.answers, "answers"), file_name_suffix=".jsonl")
        )
    report(len(paths), time.time() - float(Path(task.out, STARTED).read_text()))


if __name__ == "__main__":
    main(Task.from_arguments())
