"""Networks: a backbone, pooled features, and a softmax head; everything from uint8 pixels on is inside the graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import Model, applications, layers

from model.errors import InputError

SMALL_CNN = "small_cnn"
SMALL_CNN_FILTERS = (16, 32, 64, 96)
EMBEDDING_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Projection:
    """A linear map from pooled features to a whitened embedding.

    Attributes:
        mean: float32[features], mean of the training split's features.
        matrix: float32[features, size], principal directions, each divided by its standard deviation.
    """

    mean: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]


def build_backbone(name: str, image_size: int, weights: str | None, trainable: bool) -> Any:
    """A Keras model from pixels float32 or uint8 [batch, size, size, 3] in [0, 255] to features [batch, channels].

    Args:
        name: ``small_cnn``, or ``MobileNetV2``.
        image_size: side of the input in pixels.
        weights: ``imagenet`` (downloaded by Keras), the path of a weights file, or None for random ones.
        trainable: False freezes all layers, and BatchNormalization with them.

    Raises:
        InputError: the name is unknown, or the weights cannot be loaded.
    """
    pixels = layers.Input((image_size, image_size, 3), name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(pixels)
    if name == SMALL_CNN:
        if weights is not None:
            raise InputError("the small network is trained from scratch: use --weights none")
        features = _small_cnn(x)
    elif name == "MobileNetV2":
        features = _mobilenet_v2(x, image_size, weights)
    else:
        raise InputError(f"there is no backbone {name!r}; the backbones are {SMALL_CNN}, MobileNetV2")
    backbone = Model(pixels, features, name="backbone")
    backbone.trainable = trainable
    return backbone


def _mobilenet_v2(x: Any, image_size: int, weights: str | None) -> Any:
    if weights not in (None, "imagenet") and not Path(str(weights)).is_file():
        raise InputError(f"there is no weights file {weights}; give a path, imagenet or none")
    try:
        network = applications.MobileNetV2(
            input_shape=(image_size, image_size, 3), include_top=False, weights=weights, name="mobilenet_v2"
        )
    except Exception as error:
        # Keras raises many kinds here: URLError and ReadError offline, ValueError on shapes, OSError on a damaged file.
        hint = "download them once and give --weights PATH" if weights == "imagenet" else "is it the no-top file?"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load the weights {weights}: {reason}; {hint}") from error
    return layers.GlobalAveragePooling2D(name="features")(network(x))


def _small_cnn(x: Any) -> Any:
    for index, filters in enumerate(SMALL_CNN_FILTERS):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"convolution_{index}")(x)
        # A momentum of 0.9, not Keras' 0.99: short trainings end before slow moving statistics have arrived.
        # Synchronised over replicas, so that replica 0, which is exported, has the statistics of all.
        x = layers.BatchNormalization(momentum=0.9, synchronized=True, name=f"normalization_{index}")(x)
        x = layers.ReLU(name=f"relu_{index}")(x)
        x = layers.MaxPooling2D(2, name=f"pooling_{index}")(x)
    average = layers.GlobalAveragePooling2D(name="average_features")(x)
    # A crack covers few pixels: its strongest response says more than the mean over the patch.
    strongest = layers.GlobalMaxPooling2D(name="strongest_features")(x)
    return layers.Concatenate(name="features")([average, strongest])


def build_head(feature_count: int, class_count: int, dropout: float) -> Any:
    """A Keras model from features float32[batch, features] to probabilities float32[batch, classes]."""
    features = layers.Input((feature_count,), name="features")
    x = layers.Dropout(dropout, name="dropout")(features) if dropout else features
    # float32 also under mixed precision: a softmax in float16 loses the tails.
    probabilities = layers.Dense(class_count, activation="softmax", dtype="float32", name="probabilities")(x)
    return Model(features, probabilities, name="head")


def build_augmentation(seed: int) -> Any:
    """Random flips and small rotations of pixels float32[batch, size, size, 3] in [0, 255]; identity at inference."""
    from keras import Sequential

    return Sequential(
        [
            layers.RandomFlip("horizontal_and_vertical", seed=seed),
            layers.RandomRotation(0.1, fill_mode="reflect", seed=seed + 1),
            layers.RandomBrightness(0.15, value_range=(0, 255), seed=seed + 2),
            layers.RandomContrast(0.2, value_range=(0, 255), seed=seed + 3),
        ],
        name="augmentation",
    )


def build_classifier(backbone: Any, head: Any, augmentation: Any | None = None) -> Any:
    """The network that is trained and evaluated: pixels -> probabilities float32[batch, classes]."""
    pixels = layers.Input(backbone.input_shape[1:], name="pixels")
    x = augmentation(pixels) if augmentation is not None else pixels
    return Model(pixels, head(backbone(x)), name="classifier")


def build_serving(backbone: Any, head: Any, projection: Projection) -> Any:
    """The network that is exported: uint8 pixels -> ``probabilities`` and ``embedding``, with all weights frozen."""
    pixels = layers.Input(backbone.input_shape[1:], dtype="uint8", name="pixels")
    features = backbone(layers.Rescaling(1.0, name="to_float")(pixels))
    size = projection.matrix.shape[1]
    embedding = layers.Dense(size, dtype="float32", name="embedding")
    outputs = {"probabilities": head(features), "embedding": embedding(features)}
    embedding.set_weights([projection.matrix, -projection.mean @ projection.matrix])
    model = Model(pixels, outputs, name="crackscan")
    model.trainable = False
    return model


def fit_projection(features: npt.NDArray[np.float32], size: int = EMBEDDING_SIZE) -> Projection:
    """Principal-component whitening of features float32[images, channels] to ``size`` numbers or fewer.

    Directions whose variance is below a millionth of the largest are left out: dividing by it would blow up noise.

    Raises:
        InputError: there are fewer than two images, or all have the same features.
    """
    if len(features) < 2:
        raise InputError("the training split needs two images or more")
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.cov(features, rowvar=False, dtype=np.float64).reshape(features.shape[1], features.shape[1])
    variances, directions = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1][:size]
    order = order[variances[order] > 1e-6 * max(float(variances[order[0]]), 1e-12)]
    if not len(order):
        raise InputError("the training images all have the same features: are they copies of one image?")
    # The sign of an eigenvector is arbitrary; the largest entry made positive gives the same embedding every time.
    chosen = directions[:, order]
    signs = np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(len(order))])
    matrix = chosen * signs / np.sqrt(variances[order])
    return Projection(mean.astype(np.float32), matrix.astype(np.float32))
