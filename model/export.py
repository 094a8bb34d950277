"""From a Keras model to a SavedModel and to LiteRT."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.bundle import KERAS_FILE, LITERT_FILE

SIGNATURE = "serving_default"


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
    module = _Served(model)
    # The converter reports each of its steps as a warning.
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return bytes(_convert(module))
    finally:
        logger.setLevel(level)


def _convert(module: _Served) -> Any:
    import tempfile

    # By way of a SavedModel: only that way the converter keeps the names of inputs and outputs.
    with tempfile.TemporaryDirectory(prefix="crackscan-") as folder:
        tf.saved_model.save(module, folder, {SIGNATURE: module.serve.get_concrete_function()})
        return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE]).convert()


def stored_variables(folder: str) -> list[str]:
    """Names of the weights that a SavedModel stores."""
    prefix = os.path.join(folder, "variables", "variables")
    return [name for name, _ in tf.train.list_variables(prefix) if name.endswith("VARIABLE_VALUE")]
