"""Augmentations: the identity at inference, random but repeatable while training, and never out of range."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.augmentation import (
    AUGMENTATIONS,
    RandomBlur,
    RandomCompression,
    RandomJoints,
    RandomNoise,
    RandomPlacement,
    RandomShade,
    RandomSurface,
    RandomTone,
    build_augmentation,
)
from model.errors import InputError

NAMES = sorted(AUGMENTATIONS)
CHANGES = [
    RandomBlur,
    RandomCompression,
    RandomJoints,
    RandomNoise,
    RandomPlacement,
    RandomShade,
    RandomSurface,
    RandomTone,
]
SIDE = 44
"""No multiple of 8: the blocks of RandomCompression reach over the border."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Grey surfaces, each with a dark line off the middle, and noise: float32[12, 44, 44, 3]."""
    images = np.random.default_rng(0).normal(150, 12, (12, SIDE, SIDE, 3))
    images[:, 28:31, :, :] -= 90
    return images.clip(0, 255).astype(np.float32)


def changed(layer: keras.Layer, images: np.ndarray) -> np.ndarray:
    return np.asarray(layer(images, training=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_does_nothing_at_inference(name, images):
    augmentation = build_augmentation(name, 0)
    np.testing.assert_array_equal(np.asarray(augmentation(images, training=False)), images)


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_changes_images_while_training_and_keeps_to_their_range(name, images):
    result = changed(build_augmentation(name, 0), images)
    assert result.shape == images.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    # Interpolation may miss the end of the range by a rounding error.
    assert result.min() >= -1e-3
    assert result.max() <= 255 + 1e-3
    assert np.abs(result - images).mean() > 5


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_and_every_batch_differs(name, images):
    one, other = build_augmentation(name, 3), build_augmentation(name, 3)
    first, second = changed(one, images), changed(one, images)
    np.testing.assert_array_equal(changed(other, images), first)
    assert np.abs(second - first).mean() > 1
    assert np.abs(changed(build_augmentation(name, 4), images) - first).mean() > 1


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_works_in_a_graph_on_batches_of_any_length(name, images):
    augmentation = build_augmentation(name, 0)
    inputs = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(inputs, augmentation(inputs))
    in_graph = tf.function(lambda batch: model(batch, training=True)).get_concrete_function(
        tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32)
    )
    for count in (12, 5, 1):
        assert in_graph(tf.constant(images[:count])).shape == (count, SIDE, SIDE, 3)


def test_a_network_with_the_strong_augmentation_trains(images):
    inputs = keras.Input((SIDE, SIDE, 3))
    features = keras.layers.GlobalAveragePooling2D()(build_augmentation("strong", 0)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(features))
    model.compile("sgd", "mse", jit_compile=False)
    losses = model.fit(images, np.zeros((12, 2)), batch_size=5, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_probability_0_changes_nothing_and_one_of_1_every_image(change, images):
    np.testing.assert_array_equal(changed(change(0.0, seed=0), images), images)
    moved = np.abs(changed(change(1.0, seed=0), images) - images).mean(axis=(1, 2, 3))
    assert (moved > 1e-5).all()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_leaves_some_images_as_they_are(change, images):
    moved = np.abs(changed(change(0.5, seed=0), np.tile(images, (4, 1, 1, 1))) - np.tile(images, (4, 1, 1, 1)))
    assert 8 < (moved.max(axis=(1, 2, 3)) == 0).sum() < 40


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_can_be_saved_with_its_model(change):
    layer = change(0.25, seed=7)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is change
    assert (again.probability, again.seed) == (0.25, 7)


def test_another_surface_keeps_the_marks(images):
    result = changed(RandomSurface(1.0, seed=0), images)
    line, beside = result[:, 28:31].mean(axis=(1, 2, 3)), result[:, 5:25].mean(axis=(1, 2, 3))
    assert (line < 0.75 * beside).all()


def test_blur_and_compression_leave_the_mean_and_blur_takes_the_detail(images):
    blurred, compressed = changed(RandomBlur(1.0, seed=0), images), changed(RandomCompression(1.0, seed=0), images)
    np.testing.assert_allclose(blurred.mean(), images.mean(), rtol=0.01)
    np.testing.assert_allclose(compressed.mean(), images.mean(), rtol=0.02)
    assert blurred[:, :20].std() < images[:, :20].std()


def test_the_augmentations_that_published_recipes_name_are_made_of_keras_own_layers():
    def layers_of(name: str) -> list[str]:
        return [type(layer).__name__ for layer in build_augmentation(name, 0).layers]

    assert layers_of("light") == ["RandomFlip", "RandomRotation", "RandomBrightness", "RandomContrast"]
    assert layers_of("flips-rotation") == layers_of("horizontal-flip-rotation") == ["RandomFlip", "RandomRotation"]


def test_a_horizontal_flip_alone_leaves_top_and_bottom():
    flip = build_augmentation("horizontal-flip-rotation", 0).layers[0]
    ramp = np.tile(np.arange(8, dtype=np.float32)[None, :, None, None], (20, 1, 8, 3))
    np.testing.assert_array_equal(changed(flip, ramp), ramp)
    sideways = changed(flip, ramp.transpose(0, 2, 1, 3))
    assert {float(image[0, 0, 0]) for image in sideways} == {0.0, 7.0}


def test_an_unknown_augmentation_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"no augmentation 'weak'; the augmentations are light, .*strong"):
        build_augmentation("weak", 0)
