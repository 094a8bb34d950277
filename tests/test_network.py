"""Networks: the whitened embedding, what the backbones refuse, and that frozen means frozen."""

from __future__ import annotations

import urllib.error

import keras
import numpy as np
import pytest

from model.errors import InputError
from model.network import (
    EMBEDDING_SIZE,
    SMALL_CNN,
    Projection,
    build_backbone,
    build_classifier,
    build_head,
    build_serving,
    fit_projection,
    head_logits,
    scale_logits,
)


def features_of_rank(rank: int, channels: int, images: int = 400) -> np.ndarray:
    """Correlated features of very different scales, away from zero."""
    rng = np.random.default_rng(0)
    directions = rng.normal(0, 1, (rank, channels)) * np.geomspace(30, 0.3, rank)[:, None]
    return (rng.exponential(1.0, (images, rank)) @ directions + 5).astype(np.float32)


def embed(features: np.ndarray, projection: Projection) -> np.ndarray:
    return (features - projection.mean) @ projection.matrix


def assert_whitened(embedding: np.ndarray, within: float) -> None:
    np.testing.assert_allclose(embedding.mean(axis=0), 0, atol=within)
    np.testing.assert_allclose(np.cov(embedding, rowvar=False), np.eye(embedding.shape[1]), atol=within)


def test_the_embedding_of_the_training_features_has_mean_0_and_covariance_identity():
    features = features_of_rank(6, 6)
    assert abs(np.corrcoef(features, rowvar=False) - np.eye(6)).max() > 0.5
    projection = fit_projection(features)
    assert projection.matrix.shape == (6, 6)
    assert_whitened(embed(features, projection), 1e-3)


def test_of_many_directions_the_64_with_the_largest_variance_are_kept():
    features = np.random.default_rng(0).normal(0, np.linspace(1, 5, 90), (2000, 90)).astype(np.float32)
    projection = fit_projection(features)
    assert projection.matrix.shape == (90, EMBEDDING_SIZE)
    assert_whitened(embed(features, projection), 1e-3)
    # The channels vary more and more: the kept directions point along the last ones.
    weight = np.abs(projection.matrix).sum(axis=1)
    assert weight[-30:].mean() > 3 * weight[:20].mean()


def test_directions_without_variance_are_left_out():
    projection = fit_projection(features_of_rank(3, 8))
    assert projection.matrix.shape == (8, 3)
    assert_whitened(embed(features_of_rank(3, 8), projection), 1e-3)
    assert np.abs(projection.matrix).max() < 100


def test_the_projection_does_not_depend_on_the_order_of_the_images():
    features = features_of_rank(5, 5)
    one, other = fit_projection(features), fit_projection(features[::-1])
    np.testing.assert_allclose(one.matrix, other.matrix, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("images", [2, 50])
def test_features_that_are_all_the_same_are_refused(images):
    with pytest.raises(InputError, match="copies of one image"):
        fit_projection(np.full((images, 4), 0.3, np.float32))


@pytest.mark.parametrize("images", [0, 1])
def test_too_few_images_for_a_covariance_are_refused(images):
    with pytest.raises(InputError, match="two images or more"):
        fit_projection(np.ones((images, 4), np.float32))


def refusal(*arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        build_backbone(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_backbone_is_refused_with_near_ones():
    assert "did you mean small_cnn? " in refusal("Small_CNN", 32, None, True)
    assert "There are small_cnn and the " in refusal("ResNet9000", 32, None, True)


def test_weights_for_the_small_network_are_refused():
    assert "--weights none" in refusal(SMALL_CNN, 32, "imagenet", True)


def test_a_missing_weights_file_is_refused_by_name(tmp_path):
    assert f"there is no weights file {tmp_path / 'w.h5'}" in refusal("MobileNetV2", 96, str(tmp_path / "w.h5"), False)


def test_a_damaged_weights_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"no HDF5")
    message = refusal("MobileNetV2", 96, str(path), False)
    assert f"cannot load the weights {path}: " in message
    assert message.endswith("is it the no-top file?")


@pytest.mark.parametrize("error", [urllib.error.URLError("no route\nto host"), Exception("URL fetch failure\non it")])
def test_imagenet_weights_that_cannot_be_downloaded_are_refused_with_a_way_out(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr("keras.src.applications.mobilenet_v2.file_utils.get_file", download)
    message = refusal("MobileNetV2", 96, "imagenet", False)
    assert "cannot load the weights imagenet: " in message
    assert message.endswith("download them once and give --weights PATH")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(0)
    return build_backbone(SMALL_CNN, 32, None, trainable=True)


def test_frozen_backbones_have_no_weight_left_to_train(backbone):
    assert build_backbone(SMALL_CNN, 32, None, trainable=False).trainable_weights == []
    assert len(backbone.trainable_weights) == 12


def test_the_small_network_normalises_over_all_replicas(backbone):
    # Otherwise each replica has statistics of its own, and only those of the first are exported.
    normalisations = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(normalisations) == 4
    assert all(layer.synchronized for layer in normalisations)


def test_serving_takes_uint8_and_gives_the_classifiers_probabilities_and_a_whitened_embedding(backbone, pixels):
    features = backbone.predict(pixels.astype(np.float32), verbose=0)
    head = build_head(features.shape[1], 3, dropout=0.5)
    projection = fit_projection(features)
    serving = build_serving(backbone, head, projection)
    outputs = serving.predict(pixels, verbose=0)
    assert serving.inputs[0].dtype == "uint8"
    assert_whitened(outputs["embedding"], 1e-2)
    np.testing.assert_allclose(outputs["embedding"], embed(features, projection), atol=1e-3)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(outputs["probabilities"], head.predict(features, verbose=0), atol=1e-6)
    assert serving.trainable_weights == []
    backbone.trainable = True


def test_an_augmentation_comes_first_and_only_while_training(backbone, pixels):
    images = pixels[:4].astype(np.float32)
    head = build_head(backbone.output_shape[-1], 2, dropout=0.0)
    augmentation = keras.layers.RandomBrightness(0.9, value_range=(0, 255), seed=1)
    plain, augmented = build_classifier(backbone, head), build_classifier(backbone, head, augmentation)
    statistics = backbone.get_weights()
    for training in (False, True):
        answers = [np.asarray(model(images, training=training)) for model in (plain, augmented)]
        assert (np.abs(answers[0] - answers[1]).max() > 1e-3) == training
    backbone.set_weights(statistics)


@pytest.fixture(scope="module")
def head():
    keras.utils.set_random_seed(0)
    head = build_head(6, 3, dropout=0.5)
    head.get_layer("logits").set_weights([np.random.default_rng(0).normal(0, 1, (6, 3)), np.array([0.5, -1, 2])])
    return head


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_heads_probabilities_are_the_softmax_of_its_logits(head):
    features = np.random.default_rng(1).normal(0, 1, (20, 6)).astype(np.float32)
    logits = head_logits(head, features)
    assert (logits.shape, logits.dtype) == ((20, 3), np.float32)
    np.testing.assert_allclose(head.predict(features, verbose=0), softmax(logits), atol=1e-6)
    assert [layer.name for layer in head.layers] == ["features", "dropout", "logits", "probabilities"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_scaled_logits_are_divided_by_the_temperature(head, temperature):
    features = np.random.default_rng(1).normal(0, 1, (20, 6)).astype(np.float32)
    scaled = build_head(6, 3, dropout=0.0)
    scaled.set_weights(head.get_weights())
    scale_logits(scaled, temperature)
    np.testing.assert_allclose(head_logits(scaled, features), head_logits(head, features) / temperature, atol=1e-5)
    expected = softmax(head_logits(head, features) / temperature)
    np.testing.assert_allclose(scaled.predict(features, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(head, temperature):
    before = head.get_weights()
    with pytest.raises(ValueError, match="not positive and finite"):
        scale_logits(head, temperature)
    np.testing.assert_array_equal(before[0], head.get_weights()[0])


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", [SMALL_CNN, "VGG16"])
def test_mixed_precision_trains_in_bfloat16_and_its_weights_serve_in_float32(mixed_precision, pixels, name):
    keras.utils.set_random_seed(0)
    mixed = build_backbone(name, 32, None, trainable=True)
    head = build_head(mixed.output_shape[-1], 2, dropout=0.2)
    classifier = build_classifier(mixed, head)
    convolutions = [
        layer
        for model in (mixed, *(layer for layer in mixed.layers if isinstance(layer, keras.Model)))
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    assert {layer.compute_dtype for layer in convolutions} == {"bfloat16"}
    assert {weight.dtype for weight in classifier.weights} == {"float32"}
    assert np.asarray(mixed(pixels[:2])).dtype == np.asarray(classifier(pixels[:2])).dtype == np.float32
    keras.config.set_dtype_policy("float32")
    exact = build_backbone(name, 32, None, trainable=False)
    exact.set_weights(mixed.get_weights())
    of_mixed, of_exact = np.asarray(mixed(pixels[:8])), np.asarray(exact(pixels[:8]))
    assert of_exact.dtype == np.float32
    difference = np.abs(of_mixed - of_exact).max() / np.abs(of_exact).max()
    # bfloat16 has 8 bits of mantissa.
    assert 1e-6 < difference < 0.05
    fresh = build_head(mixed.output_shape[-1], 2, dropout=0.0)
    fresh.set_weights(head.get_weights())
    serving = build_serving(exact, fresh, fit_projection(np.asarray(exact(pixels[:16]))))
    dtypes = {layer.compute_dtype for layer in serving._flatten_layers(include_self=False) if layer.weights}
    assert dtypes == {"float32"}
