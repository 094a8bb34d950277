"""What is exported: one signature, every weight once, and the same numbers in all three files."""

from __future__ import annotations

import dataclasses
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from model.bundle import open_bundle
from model.export import SIGNATURE, convert_to_litert, convert_to_litert_int8, stored_variables
from model.litert import InterpreterPool
from model.network import SMALL_CNN, build_backbone, build_head, build_serving, fit_projection


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
        np.testing.assert_allclose(of_keras[name], value.numpy(), rtol=1e-3, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(of_litert[name], value.numpy(), rtol=1e-3, atol=1e-3, err_msg=name)


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


def depthwise_backbone(size: int) -> keras.Model:
    layers = keras.layers
    entry = layers.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(entry)
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu6")(x)
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    return keras.Model(entry, layers.GlobalAveragePooling2D()(x))


def serving_of(name: str, pixels: np.ndarray) -> keras.Model:
    """An untrained network that is sure of some of these images: its logits are spread out."""
    keras.utils.set_random_seed(0)
    size = pixels.shape[1]
    backbone = depthwise_backbone(size) if name == "depthwise" else build_backbone(name, size, None, trainable=False)
    features = np.asarray(backbone(pixels))
    # Random weights give features of any scale.
    scale = features.std(axis=0).max()
    projection = fit_projection(features / scale, 8)
    head = build_head(features.shape[1], 3, dropout=0.0)
    directions = np.random.default_rng(0).normal(0, 1, (projection.matrix.shape[1], 3))
    kernel = projection.matrix @ directions / scale
    head.get_layer("logits").set_weights([kernel, -features.mean(axis=0) @ kernel])
    return build_serving(
        backbone, head, dataclasses.replace(projection, mean=projection.mean * scale, matrix=projection.matrix / scale)
    )


def patterns(count: int, size: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3)).astype(np.uint8)
    return coarse.repeat(size // 2, axis=1).repeat(size // 2, axis=2)


# VGG16 is of the kind that reverses the channels.
@pytest.fixture(scope="module", params=[SMALL_CNN, "depthwise", "VGG16"])
def float_and_int8(request):
    images = patterns(64, 32, seed=1)
    serving = serving_of(request.param, images)
    return convert_to_litert(serving), convert_to_litert_int8(serving, images)


def test_int8_says_nearly_the_same_as_float32(float_and_int8):
    pixels = patterns(64, 32, seed=2)
    exact, coarse = (InterpreterPool(content, 1, batch_size=64).run(pixels) for content in float_and_int8)
    assert exact.keys() == coarse.keys() == {"probabilities", "embedding"}
    assert {(value.dtype.name, value.shape) for value in coarse.values()} == {
        ("float32", (64, 3)),
        ("float32", (64, 8)),
    }
    certain = np.sort(exact["probabilities"], axis=1)[:, -1] > 0.6
    assert certain.mean() > 0.5
    agrees = exact["probabilities"].argmax(axis=1) == coarse["probabilities"].argmax(axis=1)
    assert agrees[certain].mean() > 0.95
    assert 0 < np.abs(exact["probabilities"] - coarse["probabilities"]).mean() < 0.1
    for one, other in zip(exact["embedding"].T, coarse["embedding"].T, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.9


def test_int8_is_smaller_and_its_convolutions_are_int8_but_not_its_answers(float_and_int8):
    exact, coarse = float_and_int8
    assert len(coarse) < 0.6 * len(exact)
    interpreter = Interpreter(model_content=coarse)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    assert (entry["dtype"], entry["quantization"]) == (np.uint8, (0.0, 0))
    kernels = [detail for detail in interpreter.get_tensor_details() if len(detail["shape"]) == 4]
    convolutions = [detail for detail in kernels if detail["shape"][0] > 1 and detail["shape"][1] == 3]
    assert {detail["dtype"] for detail in convolutions} == {np.int8}
    assert all(len(detail["quantization_parameters"]["scales"]) > 1 for detail in convolutions)
    heads = [detail for detail in interpreter.get_tensor_details() if "/head" in detail["name"]]
    assert {detail["dtype"] for detail in heads} == {np.float32}
    # 256 levels would be all that int8 could say.
    outputs = InterpreterPool(coarse, 1, batch_size=64).run(patterns(64, 32, seed=3))
    assert len(np.unique(outputs["embedding"])) > 256


def test_depthwise_convolutions_stay_float32():
    images = patterns(16, 32, seed=1)
    interpreter = Interpreter(model_content=convert_to_litert_int8(serving_of("depthwise", images), images))
    # A depthwise kernel is the one of shape [1, 3, 3, channels].
    kernels = [detail for detail in interpreter.get_tensor_details() if [*detail["shape"][:3]] == [1, 3, 3]]
    assert sorted(detail["shape"][3] for detail in kernels) == [16, 32]
    assert {detail["dtype"] for detail in kernels} == {np.float32}


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
    ],
)
def test_images_that_the_network_does_not_take_are_refused(keras_model, images):
    with pytest.raises(ValueError, match="are no images for a network of"):
        convert_to_litert_int8(keras_model, images)


def test_a_quantisation_leaves_logging_and_stderr_as_they_were(keras_model, pixels, capfd):
    level = logging.getLogger("tensorflow").level
    convert_to_litert_int8(keras_model, pixels)
    assert logging.getLogger("tensorflow").level == level
    assert "fully_quantize" not in "".join(capfd.readouterr())
