"""Training: features computed once under a frozen backbone, or the whole network from the decoded images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from model import metrics
from model.dataset import Split, batches, cache_folder, decode_split, is_cached, load_split, written_whole
from model.dataset_info import SPLITS, DatasetInfo
from model.drift import reference_statistics
from model.engine import decide
from model.errors import InputError
from model.export import convert_to_litert
from model.litert import InterpreterPool
from model.lookahead import map_ahead
from model.network import (
    Projection,
    build_augmentation,
    build_backbone,
    build_classifier,
    build_head,
    build_serving,
    fit_projection,
)
from model.preprocess import brightness
from model.spec import ModelSpec, TrainConfig
from model.strategy import has_gpu

PREDICT_BATCH = 256


class Features(NamedTuple):
    """What a backbone makes of a split.

    Attributes:
        values: float32[images, channels], pooled features.
        labels: int64[images], index of the class.
        brightness: float32[images], mean of the pixels, in [0, 255].
    """

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    brightness: npt.NDArray[np.float32]


class Evaluation(NamedTuple):
    """Loss (categorical cross-entropy in nats) and counts of a network on a split."""

    loss: float
    counts: metrics.MetricCounts


@dataclasses.dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        serving: the Keras model to export, on one device.
        spec: what it is.
        history: accuracy, loss, val_accuracy and val_loss, one number per epoch.
        before: evaluation on the validation split before the first step.
        validation, test: evaluations after the last one.
        reference: content of ``reference.json``.
    """

    serving: Any
    spec: ModelSpec
    history: Mapping[str, list[float]]
    before: Evaluation
    validation: Evaluation
    test: Evaluation
    reference: Mapping[str, Any]


class Reporter:
    """Follows a training; this one says nothing."""

    def stage(self, text: str) -> None:
        """A line on what begins now."""

    def steps(self, text: str, total: int) -> Callable[[int], None]:
        """Begin a bar of ``total`` steps; the returned function moves it on."""
        return lambda _: None

    def callbacks(self) -> list[Any]:
        """Keras callbacks to train with."""
        return []


def train(
    config: TrainConfig,
    info: DatasetInfo,
    weights: str | None,
    strategy: Any,
    positive_class: str,
    log_folder: Path,
    reporter: Reporter | None = None,
) -> Trained:
    """Train a recipe on prepared data.

    Args:
        config: the recipe.
        info: the prepared data.
        weights: of the backbone: ``imagenet``, the path of a file, or None.
        strategy: a tf.distribute strategy; the global batch is the recipe's times the replicas, and so is the
            learning rate (linear scaling, Goyal et al. 2017).
        positive_class: the class that precision and recall speak of.
        log_folder: where the TensorBoard logs go.
        reporter: told how far it is.

    Raises:
        InputError: the data or the weights cannot be used.
    """
    reporter = reporter or Reporter()
    for name in SPLITS:
        if info.count(name) == 0:
            raise InputError(f"the {name} split of {info.data} is empty: prepare more images or another --split")
        if name != "test" and info.count(name) < strategy.num_replicas_in_sync:
            raise InputError(f"the {name} split has fewer images than there are devices: prepare more images")
    keras.utils.set_random_seed(config.seed)
    spec = ModelSpec(
        classes=info.classes,
        positive_class=positive_class,
        image_size=config.image_size,
        threshold=0.5,
        backbone=config.backbone,
        recipe=config.recipe,
        embedding_size=0,
        data_fingerprint=info.fingerprint,
    )
    stage = _train_frozen if config.frozen else _train_whole
    backbone, head, history, before, features = stage(config, info, spec, weights, strategy, log_folder, reporter)
    projection = fit_projection(features["train"].values)
    spec = dataclasses.replace(spec, embedding_size=projection.matrix.shape[1])
    after = {name: _predict(head, features[name].values, strategy) for name in SPLITS}
    embedding = (features["train"].values - projection.mean) @ projection.matrix
    return Trained(
        serving=_on_one_device(config, backbone, head, projection),
        spec=spec,
        history=history,
        before=before,
        validation=_evaluate(spec, features["val"].labels, after["val"]),
        test=_evaluate(spec, features["test"].labels, after["test"]),
        reference=reference_statistics(after["train"], embedding, features["train"].brightness),
    )


def _train_frozen(
    config: TrainConfig,
    info: DatasetInfo,
    spec: ModelSpec,
    weights: str | None,
    strategy: Any,
    log_folder: Path,
    reporter: Reporter,
) -> Any:
    # Outside of the strategy's scope: on several devices each would compute all features.
    backbone = build_backbone(config.backbone, config.image_size, weights, trainable=False)
    features = {name: _cached_features(backbone, config, info, name, reporter) for name in SPLITS}
    reporter.stage("training the head on the features: a frozen backbone needs each image once")
    with strategy.scope():
        head = build_head(backbone.output_shape[-1], len(info.classes), config.dropout)
        _compile(head, config, strategy, info.count("train"))
    before = _evaluate(spec, features["val"].labels, _predict(head, features["val"].values, strategy))
    even = {name: _even(info.count(name), strategy) for name in SPLITS}
    values = {name: features[name].values[: even[name]] for name in SPLITS}
    one_hot = {
        name: np.eye(len(info.classes), dtype=np.float32)[features[name].labels[: even[name]]] for name in SPLITS
    }
    history = head.fit(
        values["train"],
        one_hot["train"],
        batch_size=config.batch_size * strategy.num_replicas_in_sync,
        epochs=config.epochs,
        validation_data=(values["val"], one_hot["val"]),
        callbacks=_callbacks(log_folder, reporter),
        verbose=0,
    )
    return backbone, head, history.history, before, features


def _train_whole(
    config: TrainConfig,
    info: DatasetInfo,
    spec: ModelSpec,
    weights: str | None,
    strategy: Any,
    log_folder: Path,
    reporter: Reporter,
) -> Any:
    splits = {name: _decoded(config, info, name, reporter) for name in SPLITS}
    reporter.stage("training the whole network on the decoded images")
    with strategy.scope():
        backbone = build_backbone(config.backbone, config.image_size, weights, trainable=True)
        head = build_head(backbone.output_shape[-1], len(info.classes), config.dropout)
        augmentation = build_augmentation(config.seed) if config.augmented else None
        classifier = build_classifier(backbone, head, augmentation)
        _compile(classifier, config, strategy, info.count("train"))

    def one_hot(pixels: Any, labels: Any) -> tuple[Any, Any]:
        return pixels, keras.ops.one_hot(labels, len(info.classes))

    global_batch = config.batch_size * strategy.num_replicas_in_sync
    before = _evaluate(spec, splits["val"].labels, _predict(classifier, splits["val"], strategy))
    history = classifier.fit(
        batches(splits["train"], global_batch, config.seed, _even(info.count("train"), strategy)).map(one_hot),
        epochs=config.epochs,
        validation_data=batches(
            splits["val"], _even(PREDICT_BATCH, strategy), images=_even(info.count("val"), strategy)
        ).map(one_hot),
        # The data set shuffles itself.
        shuffle=False,
        callbacks=_callbacks(log_folder, reporter),
        verbose=0,
    )
    reporter.stage("evaluating")
    features = {
        name: Features(_predict(backbone, split, strategy), split.labels, _brightness(split.pixels))
        for name, split in splits.items()
    }
    return backbone, head, history.history, before, features


def _even(images: int, strategy: Any) -> int:
    """The most images, no more than these, that a strategy's devices share evenly.

    Keras 3.15 fails where the devices' shares of the first batch differ, or where one's share of the last is empty.
    """
    replicas = int(strategy.num_replicas_in_sync)
    return images // replicas * replicas


def _predict(model: Any, inputs: Split | npt.NDArray[np.float32], strategy: Any) -> npt.NDArray[np.float32]:
    """What a network says of a split's pixels or of features; the last image is repeated to share them evenly."""
    batch_size = _even(PREDICT_BATCH, strategy)
    replicas = strategy.num_replicas_in_sync
    if isinstance(inputs, Split):
        count = len(inputs.labels)
        padded = batches(inputs, batch_size, images=_even(count + replicas - 1, strategy))
        outputs = model.predict(padded.map(lambda pixels, _: pixels), verbose=0)
    else:
        count = len(inputs)
        missing = _even(count + replicas - 1, strategy) - count
        outputs = model.predict(np.concatenate([inputs, inputs[-1:].repeat(missing, 0)]), batch_size, verbose=0)
    return np.asarray(outputs[:count])


def _decoded(config: TrainConfig, info: DatasetInfo, name: str, reporter: Reporter) -> Split:
    if is_cached(info, name, config.image_size):
        reporter.stage(f"pixels of the {name} split: from the cache")
        return load_split(info, name, config.image_size)
    return load_split(info, name, config.image_size, reporter.steps(f"decoding the {name} split", info.count(name)))


def _brightness(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.array([brightness(image) for image in pixels], np.float32)


def _compile(model: Any, config: TrainConfig, strategy: Any, images: int) -> None:
    replicas = strategy.num_replicas_in_sync
    rate = config.learning_rate * replicas
    if config.cosine:
        steps = config.epochs * -(-images // (config.batch_size * replicas))
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )


def _callbacks(log_folder: Path, reporter: Reporter) -> list[Any]:
    return [keras.callbacks.TensorBoard(str(log_folder)), *reporter.callbacks()]


def _evaluate(spec: ModelSpec, labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> Evaluation:
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    names = [spec.classes[label] for label in labels]
    counts = metrics.count(spec.classes, names, decide(probabilities, spec), probabilities)
    return Evaluation(float(-np.log(np.maximum(of_label, 1e-7)).mean()), counts)


def _on_one_device(config: TrainConfig, backbone: Any, head: Any, projection: Projection) -> Any:
    """The trained weights in a new network: what a strategy wove in is left behind."""
    fresh = build_backbone(config.backbone, config.image_size, None, trainable=False)
    # Without dropout, which does nothing here but would be exported with the state of its random numbers.
    fresh_head = build_head(fresh.output_shape[-1], head.output_shape[-1], dropout=0.0)
    fresh.set_weights(backbone.get_weights())
    fresh_head.set_weights(head.get_weights())
    return build_serving(fresh, fresh_head, projection)


def _cached_features(backbone: Any, config: TrainConfig, info: DatasetInfo, name: str, reporter: Reporter) -> Features:
    """Features of a split, from the cache where the same backbone has seen the same data before."""
    digest = hashlib.sha256(f"{config.backbone} {config.image_size}".encode())
    for weight in backbone.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    path = cache_folder(info) / f"{name}-features-{digest.hexdigest()[:16]}.npz"
    if path.exists():
        reporter.stage(f"features of the {name} split: from the cache")
        try:
            with np.load(path) as stored:
                return Features(stored["values"], stored["labels"], stored["brightness"])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"the cache {path.parent} is damaged: remove it and train again") from error
    advance = reporter.steps(f"features of the {name} split", info.count(name))
    features = _compute_features(backbone, config, info, name, advance)
    with written_whole(path) as unfinished:
        np.savez(unfinished, **features._asdict())
    return features


def _compute_features(
    backbone: Any, config: TrainConfig, info: DatasetInfo, name: str, advance: Callable[[int], None]
) -> Features:
    chunks = decode_split(info, name, config.image_size)
    if has_gpu():
        predicted = ((pixels, labels, backbone.predict_on_batch(pixels)) for pixels, labels in chunks)
    else:
        predicted = _features_by_litert(backbone, chunks)
    values, all_labels, all_brightness = [], [], []
    for pixels, labels, features in predicted:
        values.append(np.asarray(features, np.float32))
        all_labels.append(labels)
        all_brightness.append(_brightness(pixels))
        advance(len(labels))
    return Features(np.concatenate(values), np.concatenate(all_labels), np.concatenate(all_brightness))


def _features_by_litert(backbone: Any, chunks: Any) -> Any:
    threads = os.cpu_count() or 1
    pool = InterpreterPool(convert_to_litert(backbone), threads)

    def predict(chunk: Any) -> Any:
        pixels, labels = chunk
        parts = [
            pool.run(pixels[start : start + pool.batch_size])["features"]
            for start in range(0, len(pixels), pool.batch_size)
        ]
        return pixels, labels, np.concatenate(parts)

    return map_ahead(predict, chunks, threads)
