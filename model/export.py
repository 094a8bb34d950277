"""From a Keras model to a SavedModel and to LiteRT."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow.lite.python.convert import mlir_quantize

from model.bundle import KERAS_FILE, LITERT_FILE
from model.native_log import quiet_native_log

SIGNATURE = "serving_default"
FLOAT_OPERATIONS = ("DEPTHWISE_CONV_2D", "REVERSE_V2", "SOFTMAX")
"""What stays float32 in an int8 network. The taps of a depthwise filter nearly cancel out, and the int8 errors of its
weights do not: MobileNetV2 loses 0.1 to 0.2 points of accuracy by them. LiteRT reverses channels without regard to
their scales. A softmax has 256 levels in int8.
"""
FLOAT_NAMES = re.compile(r"/rescaling|/head|^StatefulPartitionedCall")
"""Names of tensors that stay float32: of the preprocessing, of the head, and the outputs. They cost nothing, while int8
would leave 256 levels of the logits and of each number of the embedding.
"""


class _Served(tf.Module):
    """A bare module: ``Model.export`` would store every weight twice."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weights = [variable.value for variable in model.variables]
        specification = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="pixels")

        def serve(pixels: Any) -> Any:
            outputs = model(pixels, training=False)
            return outputs if isinstance(outputs, dict) else {"features": outputs}

        self.serve = tf.function(serve, input_signature=[specification])


def export_model(model: Any, folder: Path) -> None:
    """Write a serving model (:func:`model.network.build_serving`) as SavedModel, ``model.tflite`` and ``model.keras``.

    The SavedModel has one signature, ``serving_default``: pixels uint8[batch, size, size, 3] -> the model's outputs;
    every weight is stored once.
    """
    module = _Served(model)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), {SIGNATURE: module.serve.get_concrete_function()}, options)
    model.save(folder / KERAS_FILE)
    (folder / LITERT_FILE).write_bytes(convert_to_litert(model))


def convert_to_litert(model: Any) -> bytes:
    """A LiteRT flatbuffer, float32, of a model from uint8 pixels; a single output without a name is ``features``."""
    with _converter(model) as converter:
        return bytes(converter.convert())


def convert_to_litert_int8(model: Any, images: npt.NDArray[np.uint8]) -> bytes:
    """A LiteRT flatbuffer of a serving model whose convolutions compute with int8 weights and activations.

    Inputs and outputs are those of :func:`convert_to_litert`. Every activation gets the range that it has on the given
    images (post-training quantisation); weights get one scale per channel.

    Args:
        model: a serving model (:func:`model.network.build_serving`).
        images: uint8[images, size, size, 3], training images to take the ranges from; 100 to 300 are enough.

    Raises:
        ValueError: there are no images, or they are not such as the network takes.
    """
    if not len(images) or images.dtype != np.uint8 or images.shape[1:] != model.input_shape[1:]:
        raise ValueError(f"{images.dtype}{list(images.shape)} are no images for a network of {model.input_shape}")

    def representative() -> Iterator[dict[str, npt.NDArray[np.uint8]]]:
        for index in range(len(images)):
            yield {"pixels": images[index : index + 1]}

    with _converter(model) as converter:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        # convert() would quantise everything; what stays float can only be said to its second half.
        converter._experimental_calibrate_only = True
        with warnings.catch_warnings():
            # TensorFlow's own calibrator uses the interpreter that TensorFlow calls outdated.
            warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated")
            calibrated = converter.convert()
        names = {detail["name"] for detail in Interpreter(model_content=calibrated).get_tensor_details()}
        with quiet_native_log():
            quantised = mlir_quantize(
                calibrated,
                denylisted_ops=set(FLOAT_OPERATIONS),
                denylisted_nodes={name for name in names if FLOAT_NAMES.search(name)},
            )
        return bytes(quantised)


@contextmanager
def _converter(model: Any) -> Iterator[Any]:
    module = _Served(model)
    # The converter reports each of its steps as a warning.
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # By way of a SavedModel: only that way the converter keeps the names of inputs and outputs.
        with tempfile.TemporaryDirectory(prefix="crackscan-") as folder:
            tf.saved_model.save(module, folder, {SIGNATURE: module.serve.get_concrete_function()})
            yield tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
    finally:
        logger.setLevel(level)


def stored_variables(folder: str) -> list[str]:
    """Names of the weights that a SavedModel stores."""
    prefix = os.path.join(folder, "variables", "variables")
    return [name for name, _ in tf.train.list_variables(prefix) if name.endswith("VARIABLE_VALUE")]
