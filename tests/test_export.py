"""What is exported: one signature, every weight once, and the same numbers in all three files."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.bundle import open_bundle
from model.export import SIGNATURE, convert_to_litert, stored_variables
from model.litert import InterpreterPool
from model.network import SMALL_CNN, build_backbone


@pytest.fixture(scope="module")
def saved_model(tiny_bundle):
    return tf.saved_model.load(str(tiny_bundle))


@pytest.fixture(scope="module")
def keras_model(tiny_bundle):
    return keras.saving.load_model(tiny_bundle / "model.keras")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(5).integers(0, 256, (6, 32, 32, 3), np.uint8)


def test_the_saved_model_has_one_signature_of_uint8_pixels(saved_model, tiny_bundle):
    assert list(saved_model.signatures) == [SIGNATURE] == ["serving_default"]
    signature = saved_model.signatures[SIGNATURE]
    (specification,) = signature.structured_input_signature[1].values()
    assert (specification.name, specification.dtype) == ("pixels", tf.uint8)
    assert specification.shape.as_list() == [None, 32, 32, 3]
    outputs = signature.structured_outputs
    assert {name: (output.dtype, output.shape.as_list()) for name, output in outputs.items()} == {
        "probabilities": (tf.float32, [None, 2]),
        "embedding": (tf.float32, [None, open_bundle(str(tiny_bundle)).spec.embedding_size]),
    }


@pytest.mark.parametrize("count", [1, 3, 6])
def test_the_saved_model_takes_any_batch_and_gives_probabilities(saved_model, pixels, count):
    outputs = saved_model.signatures[SIGNATURE](pixels=tf.constant(pixels[:count]))
    probabilities = outputs["probabilities"].numpy()
    assert probabilities.shape == (count, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert outputs["embedding"].shape[0] == count


def test_every_weight_is_stored_once(tiny_bundle, keras_model):
    stored = stored_variables(str(tiny_bundle))
    # Four convolutions, four normalisations of four, a head and a projection of two each.
    assert len(stored) == len(keras_model.variables) == 4 + 16 + 4
    values = sum(int(np.prod(variable.shape)) for variable in keras_model.variables)
    (data,) = (tiny_bundle / "variables").glob("*.data-*")
    assert 4 * values <= data.stat().st_size < 1.2 * 4 * values


def test_keras_and_saved_model_and_litert_say_the_same(saved_model, keras_model, tiny_bundle, pixels):
    reference = saved_model.signatures[SIGNATURE](pixels=tf.constant(pixels))
    of_keras = keras_model.predict(pixels, verbose=0)
    of_litert = InterpreterPool(str(tiny_bundle / "model.tflite"), 1).run(pixels)
    assert of_keras.keys() == of_litert.keys() == {"probabilities", "embedding"}
    for name, value in reference.items():
        np.testing.assert_allclose(of_keras[name], value.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(of_litert[name], value.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_keras_file_has_nothing_to_train_and_takes_uint8(keras_model):
    assert keras_model.trainable_weights == []
    assert keras_model.inputs[0].dtype == "uint8"


def test_a_network_with_one_output_gives_features(pixels):
    backbone = build_backbone(SMALL_CNN, 32, None, trainable=False)
    level = logging.getLogger("tensorflow").level
    outputs = InterpreterPool(convert_to_litert(backbone), 1).run(pixels)
    assert list(outputs) == ["features"]
    np.testing.assert_allclose(outputs["features"], backbone.predict(pixels, verbose=0), atol=1e-4)
    assert logging.getLogger("tensorflow").level == level


def test_an_export_of_a_loaded_model_equals_the_first(keras_model, tiny_bundle, pixels):
    again = InterpreterPool(convert_to_litert(keras_model), 1).run(pixels)
    first = InterpreterPool(str(tiny_bundle / "model.tflite"), 1).run(pixels)
    np.testing.assert_array_equal(again["probabilities"], first["probabilities"])
