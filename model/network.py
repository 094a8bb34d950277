"""Networks: a backbone, pooled features, and a softmax head; everything from uint8 pixels on is inside the graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import Model, layers

from model.backbones import check_application, load_application, preprocess
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


def build_backbone(name: str, image_size: int, weights: str | None, trainable: bool, fine_tune_from: int = 0) -> Any:
    """A network from pixels to pooled features, with the preprocessing that it wants inside.

    What of it is trained is chosen by :func:`set_trainable`; BatchNormalization is trained only if the weights are
    random.

    Args:
        name: ``small_cnn``, or a network of keras.applications such as ``MobileNetV2``.
        image_size: side of the input in pixels.
        weights: ``imagenet`` (downloaded by Keras), the path of a weights file, or None for random ones.
        trainable: False freezes all layers, and BatchNormalization with them.
        fine_tune_from: index of the first layer of the network that is trained if ``trainable``.

    Returns:
        A Keras model, pixels float32 or uint8 [batch, size, size, 3] in [0, 255] -> float32[batch, channels]; its last
        layer is named ``features``.

    Raises:
        InputError: the name is unknown, the images are too small, the weights cannot be loaded, or there is no such
            layer.
    """
    pixels = layers.Input((image_size, image_size, 3), name="pixels")
    if name == SMALL_CNN:
        if weights is not None:
            raise InputError("the small network is trained from scratch: use --weights none")
        features = _small_cnn(layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="rescaling")(pixels))
    else:
        check_application(name, SMALL_CNN)
        network = load_application(name, image_size, weights)
        # float32 also under mixed precision: the head and the embedding are computed from these.
        features = layers.GlobalAveragePooling2D(dtype="float32", name="features")(network(preprocess(name, pixels)))
    backbone = Model(pixels, features, name="backbone")
    set_trainable(backbone, trainable, fine_tune_from, train_normalization=weights is None)
    return backbone


def set_trainable(backbone: Any, trainable: bool, fine_tune_from: int = 0, train_normalization: bool = False) -> None:
    """Choose what of a backbone (:func:`build_backbone`) is trained; what uses it must be compiled anew afterwards.

    Frozen BatchNormalization normalises with its moving statistics and leaves them as they are. Pretrained networks
    keep it frozen: batches are small, and of the statistics that each replica would gather only those of the first are
    exported. Networks of keras.applications from random weights must train it, on one device or with large batches per
    replica; ``small_cnn`` must too, and synchronises it over replicas.

    Args:
        backbone: the backbone.
        trainable: False freezes all its layers, whatever the other arguments say.
        fine_tune_from: index of the first layer of the network that is trained, in the order of the ``layers`` of the
            model that keras.applications gives, or of the backbone itself if it is ``small_cnn``.
        train_normalization: train BatchNormalization too, and gather its statistics.

    Raises:
        InputError: the network has no layer of index ``fine_tune_from``.
    """
    network = next((layer for layer in backbone.layers if isinstance(layer, Model)), backbone)
    count = len(network.layers)
    if not 0 <= fine_tune_from < count:
        raise InputError(f"cannot fine-tune from layer {fine_tune_from}: the backbone has the layers 0 to {count - 1}")
    # Off first: Keras leaves the frozen layers of a model that is trainable already as they are.
    backbone.trainable = False
    if not trainable:
        return
    backbone.trainable = True
    for index, layer in enumerate(network.layers):
        if index < fine_tune_from or (isinstance(layer, layers.BatchNormalization) and not train_normalization):
            layer.trainable = False


def _small_cnn(x: Any) -> Any:
    for index, filters in enumerate(SMALL_CNN_FILTERS):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"convolution_{index}")(x)
        # A momentum of 0.9, not Keras' 0.99: short trainings end before slow moving statistics have arrived.
        # Synchronised over replicas, so that replica 0, which is exported, has the statistics of all.
        x = layers.BatchNormalization(momentum=0.9, synchronized=True, name=f"normalization_{index}")(x)
        x = layers.ReLU(name=f"relu_{index}")(x)
        x = layers.MaxPooling2D(2, name=f"pooling_{index}")(x)
    average = layers.GlobalAveragePooling2D(dtype="float32", name="average_features")(x)
    # A crack covers few pixels: its strongest response says more than the mean over the patch.
    strongest = layers.GlobalMaxPooling2D(dtype="float32", name="strongest_features")(x)
    return layers.Concatenate(dtype="float32", name="features")([average, strongest])


def build_head(feature_count: int, class_count: int, dropout: float) -> Any:
    """A Keras model from features float32[batch, features] to probabilities float32[batch, classes].

    Args:
        feature_count: channels of the backbone.
        class_count: number of classes.
        dropout: share of the features dropped while training, in [0, 1).
    """
    features = layers.Input((feature_count,), name="features")
    # float32 also under mixed precision: a softmax in float16 loses the tails.
    x = layers.Dropout(dropout, dtype="float32", name="dropout")(features) if dropout else features
    logits = layers.Dense(class_count, dtype="float32", name="logits")(x)
    return Model(features, layers.Softmax(dtype="float32", name="probabilities")(logits), name="head")


def head_logits(head: Any, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits float32[images, classes] of features float32[images, features]: what the head's softmax is taken of."""
    kernel, bias = head.get_layer("logits").get_weights()
    return np.asarray(features @ kernel + bias, np.float32)


def scale_logits(head: Any, temperature: float) -> None:
    """Divide a head's logits by a temperature (Guo et al. 2017), in its weights: the network gets no slower.

    Args:
        head: the head (:func:`build_head`); changed in place.
        temperature: above 1 the probabilities move together, below 1 apart; the largest stays the largest.

    Raises:
        ValueError: the temperature is not positive and finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"a temperature of {temperature} is not positive and finite")
    logits = head.get_layer("logits")
    logits.set_weights([weight / np.float32(temperature) for weight in logits.get_weights()])


def build_classifier(backbone: Any, head: Any, augmentation: Any | None = None) -> Any:
    """The network that is trained and evaluated: pixels -> probabilities float32[batch, classes]."""
    pixels = layers.Input(backbone.input_shape[1:], name="pixels")
    x = augmentation(pixels) if augmentation is not None else pixels
    return Model(pixels, head(backbone(x)), name="classifier")


def build_serving(backbone: Any, head: Any, projection: Projection) -> Any:
    """The network that is exported: uint8 pixels -> ``probabilities`` and ``embedding``, with all weights frozen."""
    pixels = layers.Input(backbone.input_shape[1:], dtype="uint8", name="pixels")
    features = backbone(layers.Rescaling(1.0, dtype="float32", name="to_float")(pixels))
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
