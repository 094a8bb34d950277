"""Backbones of keras.applications: found by name, fed what they want, frozen as told, and the same after conversion."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from keras import applications, layers

from model.backbones import application_names, check_application, load_application, preprocess
from model.errors import InputError
from model.export import convert_to_litert
from model.litert import InterpreterPool
from model.network import SMALL_CNN, build_backbone, set_trainable


def network_of(backbone: keras.Model) -> keras.Model:
    return next((layer for layer in backbone.layers if isinstance(layer, keras.Model)), backbone)


def normalizations_of(backbone: keras.Model) -> list[layers.Layer]:
    return [layer for layer in network_of(backbone).layers if isinstance(layer, layers.BatchNormalization)]


def images(count: int, size: int) -> np.ndarray:
    """Coarse random patterns: white noise looks alike to a network."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the differences, in units of the images' own differences."""
    e = float(np.sqrt(np.square(values - expected).mean()) / expected.std(axis=0).mean())
    print("ERR", e)
    return e


def refusal(function, *arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_names_are_those_of_keras():
    names = application_names()
    assert {"ConvNeXtTiny", "EfficientNetV2B0", "MobileNetV3Small", "NASNetMobile", "VGG16", "Xception"} <= set(names)
    assert len(names) >= 38
    assert all(callable(getattr(applications, name)) for name in names)


@pytest.mark.parametrize("name", ["resnet50", "RESNET50", "Resnet50"])
def test_a_name_in_another_case_is_refused_with_the_right_one_alone(name):
    count = len(application_names())
    assert refusal(check_application, name) == (
        f"there is no backbone {name!r}; did you mean ResNet50? "
        f"There are the {count} networks of keras.applications, such as MobileNetV2"
    )


def test_a_misspelt_name_is_refused_with_near_ones():
    assert "did you mean EfficientNetV2B0 or EfficientNetV2B" in refusal(check_application, "EfficentNetV2B0")
    assert "did you mean" not in refusal(check_application, "zzzzzz")


EACH_KIND = {
    "MobileNetV2": applications.mobilenet_v2,
    "Xception": applications.xception,
    "ResNet50": applications.resnet,
    "VGG16": applications.vgg16,
    "DenseNet121": applications.densenet,
    "ResNet50V2": applications.resnet_v2,
    "MobileNetV3Small": applications.mobilenet_v3,
    "EfficientNetV2B0": applications.efficientnet_v2,
    "ConvNeXtTiny": applications.convnext,
}


@pytest.mark.parametrize("name", EACH_KIND)
def test_the_preprocessing_is_that_of_keras_before_and_after_saving(name, tmp_path):
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    expected = EACH_KIND[name].preprocess_input(pixels.copy())
    entry = layers.Input((8, 8, 3))
    model = keras.Model(entry, layers.Identity()(preprocess(name, entry)))
    np.testing.assert_allclose(np.asarray(model(pixels)), expected, rtol=1e-5, atol=2e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(pixels)), np.asarray(model(pixels)))


@pytest.mark.parametrize("name", application_names())
def test_every_network_has_a_known_preprocessing(name):
    preprocess(name, layers.Input((8, 8, 3)))


@pytest.mark.parametrize(("name", "least"), [("InceptionV3", 75), ("Xception", 71), ("MobileNetV2", 32)])
def test_images_that_are_too_small_are_refused_with_the_least_size(name, least):
    expected = f"{name} needs images of {least} pixels or more, not {least - 1}: give another --image-size"
    assert refusal(build_backbone, name, least - 1, None, False) == expected
    # The size is told whatever the weights.
    assert refusal(build_backbone, name, least - 1, "imagenet", False) == expected


@pytest.fixture(scope="module")
def mobilenet():
    keras.utils.set_random_seed(0)
    return build_backbone("MobileNetV2", 32, None, trainable=False)


@pytest.fixture(scope="module")
def mobilenet_file(mobilenet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    network_of(mobilenet).save_weights(path)
    return path


def test_a_weights_file_is_loaded(mobilenet, mobilenet_file):
    keras.utils.set_random_seed(1)
    loaded = build_backbone("MobileNetV2", 32, str(mobilenet_file), trainable=False)
    for one, other in zip(loaded.get_weights(), mobilenet.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small", "ResNet50"])
def test_the_weights_of_another_network_are_refused(name, mobilenet_file):
    message = refusal(build_backbone, name, 32, str(mobilenet_file), False)
    assert message.startswith(f"cannot load the weights {mobilenet_file}: ")
    assert message.endswith("is it the no-top file?")


def test_the_first_efficientnets_see_the_same_by_imagenet_by_file_and_by_copied_weights(tmp_path, monkeypatch):
    """Keras builds them with one layer more for ``imagenet``, and keeps statistics of the pixels beside the weights."""
    keras.utils.set_random_seed(0)
    pixels = images(16, 32).astype(np.float32)
    pretrained = applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    (normalization,) = (layer for layer in pretrained.layers if isinstance(layer, layers.Normalization))
    # What the downloaded file holds: the deviations where variances belong, which the further layer makes good.
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values = normalization.get_weights()
    normalization.set_weights([mean.reshape(values[0].shape), deviation.reshape(values[1].shape), *values[2:]])
    path = tmp_path / "efficientnet.weights.h5"
    pretrained.save_weights(path)
    monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", lambda *_, **__: str(path))
    reference = applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(32, 32, 3))
    expected = np.asarray(reference(pixels)).mean(axis=(1, 2))
    print("SIG", expected.std(axis=0).mean() / np.abs(expected).mean())
    by_name = build_backbone("EfficientNetB0", 32, "imagenet", trainable=False)
    by_file = build_backbone("EfficientNetB0", 32, str(path), trainable=False)
    copied = build_backbone("EfficientNetB0", 32, None, trainable=False)
    copied.set_weights(by_file.get_weights())
    for backbone in (by_name, by_file, copied):
        assert relative_error(np.asarray(backbone(pixels)), expected) < 1e-4


@pytest.mark.parametrize("name", ["EfficientNetV2B0", "MobileNetV3Small", "ResNet50", "DenseNet121"])
def test_a_backbone_is_the_same_after_saving_and_in_litert(name, tmp_path):
    keras.utils.set_random_seed(0)
    backbone = build_backbone(name, 32, None, trainable=False)
    pixels = images(8, 32)
    features = backbone.predict(pixels, verbose=0)
    assert (features.dtype, features.shape) == (np.float32, (8, backbone.output_shape[-1]))
    print("SIG", features.std(axis=0).mean() / np.abs(features).mean())
    backbone.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    of_litert = InterpreterPool(convert_to_litert(loaded), 1).run(pixels)["features"]
    assert relative_error(of_litert, features) < 1e-4


def test_convnext_whose_layers_are_its_own_is_loaded_without_custom_code(tmp_path):
    keras.utils.set_random_seed(0)
    backbone = build_backbone("ConvNeXtTiny", 32, None, trainable=False)
    backbone.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(images(2, 32))), np.asarray(backbone(images(2, 32))))


def trained_layers(backbone: keras.Model) -> set[int]:
    return {index for index, layer in enumerate(network_of(backbone).layers) if layer.trainable_weights}


def test_pretrained_normalisation_stays_frozen_and_random_one_is_trained(mobilenet_file):
    pretrained = build_backbone("MobileNetV2", 32, str(mobilenet_file), trainable=True)
    random = build_backbone("MobileNetV2", 32, None, trainable=True)
    # A scale and an offset of each of its 52 normalisations.
    assert len(normalizations_of(random)) == 52
    assert len(random.trainable_weights) - len(pretrained.trainable_weights) == 2 * 52
    assert not any(layer.trainable for layer in normalizations_of(pretrained))


def test_fine_tuning_trains_the_layers_from_an_index_on(mobilenet_file):
    backbone = build_backbone("MobileNetV2", 32, str(mobilenet_file), trainable=True, fine_tune_from=100)
    assert min(trained_layers(backbone)) >= 100
    assert trained_layers(backbone)
    set_trainable(backbone, True)
    whole = trained_layers(backbone)
    assert min(whole) == 1
    set_trainable(backbone, True, fine_tune_from=100)
    assert trained_layers(backbone) == {index for index in whole if index >= 100}
    set_trainable(backbone, True, fine_tune_from=100, train_normalization=True)
    normalization = {index for index, layer in enumerate(network_of(backbone).layers) if "BN" in layer.name}
    assert trained_layers(backbone) & normalization == {index for index in normalization if index >= 100}
    set_trainable(backbone, False)
    assert backbone.trainable_weights == []


@pytest.mark.parametrize("train_normalization", [False, True])
def test_frozen_normalisation_keeps_its_statistics_while_training(mobilenet, train_normalization):
    set_trainable(mobilenet, True, train_normalization=train_normalization)
    layer = normalizations_of(mobilenet)[0]
    before = layer.moving_mean.numpy()
    pixels = images(4, 32).astype(np.float32)
    trained, inferred = np.asarray(mobilenet(pixels, training=True)), np.asarray(mobilenet(pixels, training=False))
    assert np.array_equal(before, layer.moving_mean.numpy()) != train_normalization
    assert np.allclose(trained, inferred, rtol=1e-4, atol=0) != train_normalization
    layer.moving_mean.assign(before)
    set_trainable(mobilenet, False)


@pytest.mark.parametrize("name", [SMALL_CNN, "MobileNetV2"])
@pytest.mark.parametrize("index", [-1, 10_000])
def test_a_layer_that_is_not_there_is_refused(name, index, mobilenet):
    backbone = mobilenet if name == "MobileNetV2" else build_backbone(name, 32, None, trainable=False)
    last = len(network_of(backbone).layers) - 1
    message = refusal(set_trainable, backbone, True, index)
    assert message == f"cannot fine-tune from layer {index}: the backbone has the layers 0 to {last}"
    assert backbone.trainable_weights == []


def test_small_cnn_is_fine_tuned_from_its_own_layers():
    backbone = build_backbone(SMALL_CNN, 32, None, trainable=True)
    names = [layer.name for layer in backbone.layers]
    set_trainable(backbone, True, names.index("convolution_2"), train_normalization=True)
    trained = {re.sub(r"/.*", "", weight.path) for weight in backbone.trainable_weights}
    assert trained == {"convolution_2", "normalization_2", "convolution_3", "normalization_3"}


def test_a_network_without_weights_is_loaded_at_a_size_that_mobilenet_has_no_weights_of():
    # Keras warns of it, and warnings are errors here.
    assert load_application("MobileNetV2", 40, None).input_shape == (None, 40, 40, 3)
