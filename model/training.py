"""From prepared data to a trained, calibrated network: the stages of a recipe, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from model import metrics
from model.augmentation import build_augmentation
from model.calibration import ThresholdTarget, apply_temperature, choose_threshold, fit_temperature
from model.checkpoint import Checkpoint, TrainingState
from model.dataset import Inputs, Split, is_cached, load_split
from model.dataset_info import SPLITS, DatasetInfo
from model.drift import reference_statistics
from model.engine import decide
from model.errors import InputError
from model.features import FeatureExtractor, Features
from model.network import (
    build_backbone,
    build_classifier,
    build_head,
    build_serving,
    fit_projection,
    head_logits,
    scale_logits,
    set_trainable,
)
from model.spec import ModelSpec, Stage, TrainConfig
from model.tensorboard_log import TensorBoardLog
from model.training_loop import Examples, Predictor, Reporter, Validation, fit_stage


class Evaluation(NamedTuple):
    """Loss (categorical cross-entropy in nats) and counts of a network on a split."""

    loss: float
    counts: metrics.MetricCounts


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a recipe is trained here.

    Attributes:
        weights: of the backbone to begin with: ``imagenet``, the path of a file, or None for random ones.
        positive_class: the class that precision, recall and the threshold speak of.
        threshold_for: what the decision threshold is chosen for, with two classes.
        mixed_precision: compute in 16 bits and keep float32 weights.
    """

    weights: str | None
    positive_class: str
    threshold_for: ThresholdTarget
    mixed_precision: bool = False


@dataclasses.dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        serving: the Keras model to export, on one device, float32.
        spec: what it is.
        history: one row per epoch, as of :class:`model.checkpoint.TrainingState`.
        resumed_seconds: what the epochs took that the checkpoint held already.
        before: evaluation on the validation split before the first step.
        validation, test: evaluations of the calibrated network, with the chosen threshold.
        uncalibrated: the same as ``validation`` and ``test`` before calibration, by their names.
        temperature: what the logits were divided by.
        test_probabilities: float32[images, classes], calibrated.
        reference: content of ``reference.json``.
    """

    serving: Any
    spec: ModelSpec
    history: list[dict[str, Any]]
    resumed_seconds: float
    before: Evaluation
    validation: Evaluation
    test: Evaluation
    uncalibrated: Mapping[str, Evaluation]
    temperature: float
    test_probabilities: npt.NDArray[np.float32]
    reference: Mapping[str, Any]


def train(
    config: TrainConfig,
    info: DatasetInfo,
    options: TrainingOptions,
    strategy: Any,
    log_folder: Path,
    checkpoint: Checkpoint | None = None,
    reporter: Reporter | None = None,
) -> Trained:
    """Train a recipe on prepared data.

    Args:
        config: the recipe.
        info: the prepared data.
        options: how it is trained here.
        strategy: a tf.distribute strategy.
        log_folder: where the TensorBoard logs go.
        checkpoint: gone on from where it holds a state, and kept up to date; None for neither.
        reporter: told how far it is.

    Raises:
        InputError: the data, the weights or the checkpoint cannot be used, or no threshold reaches its target.
    """
    reporter = reporter or Reporter()
    for name in SPLITS:
        if info.count(name) == 0:
            raise InputError(f"the {name} split of {info.data} is empty: prepare more images or another --split")
    keras.utils.set_random_seed(config.seed)
    network = _Network(config, info, options, strategy, reporter)
    spec = ModelSpec(
        classes=info.classes,
        positive_class=options.positive_class,
        image_size=config.image_size,
        threshold=0.5,
        backbone=config.backbone,
        recipe=config.recipe,
        embedding_size=0,
        data_fingerprint=info.fingerprint,
    )
    before = evaluate(spec, *network.validation_scores(config.stages[0]))
    state = (checkpoint.load() if checkpoint else None) or TrainingState()
    resumed_seconds = sum(row["seconds"] for row in state.history)
    if state.history:
        reporter.stage(f"going on after epoch {state.history[-1]['epoch']} of stage {state.history[-1]['stage']}")
    with closing(TensorBoardLog(log_folder)) as log:
        for epoch, row in enumerate(state.history, 1):
            log.write(epoch, row)
        for number in range(state.stage, len(config.stages)):
            state.stage = number
            network.train_stage(state, checkpoint, log.write)
    reporter.stage("evaluating")
    return _finished(network, spec, options.threshold_for, state.history, resumed_seconds, before)


class _Network:
    """Backbone and head of one training, and the images as they need them."""

    def __init__(
        self, config: TrainConfig, info: DatasetInfo, options: TrainingOptions, strategy: Any, reporter: Reporter
    ) -> None:
        self.config = config
        self.info = info
        self._strategy = strategy
        self._reporter = reporter
        self._policy = _policy(options.mixed_precision)
        self._trains_normalization = options.weights is None
        self._frozen_extractor: FeatureExtractor | None = None
        self._frozen: dict[str, Features] = {}
        with self._precision(), strategy.scope():
            self.backbone = build_backbone(config.backbone, config.image_size, options.weights, trainable=False)
            self.head = build_head(self.backbone.output_shape[-1], len(info.classes), config.dropout)

    def final_features(self, backbone: Any) -> dict[str, Features]:
        """Features of all splits by the backbone as it is now, given as :meth:`single_backbone` makes it."""
        if all(stage.frozen for stage in self.config.stages):
            return {name: self._frozen_features(name) for name in SPLITS}
        extractor = self._extractor(backbone)
        return {name: extractor.computed(name) for name in SPLITS}

    def validation_scores(self, stage: Stage) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Labels int64[images] and probabilities float32[images, classes] of the validation split, as it is now."""
        return self._validator(stage)()

    def train_stage(
        self, state: TrainingState, checkpoint: Checkpoint | None, log: Callable[[int, dict[str, Any]], None]
    ) -> None:
        """Train the stage that the state is in."""
        stage = self.config.stages[state.stage]
        set_trainable(self.backbone, not stage.frozen, stage.fine_tune_from, self._trains_normalization)
        if stage.frozen and stage.augmentation is None:
            features = self._frozen_features("train")
            model, examples = self.head, Examples(features.values, features.labels)
            self._reporter.stage("training the head on the features: a frozen backbone needs each image once")
        else:
            split = self._pixels("train")
            model, examples = self._classifier(stage), Examples(split.pixels, split.labels)
            part = "the head" if stage.frozen else "the network"
            self._reporter.stage(f"training {part} on the decoded images")
        scores = self._validator(stage)

        def validate() -> Validation:
            labels, probabilities = scores()
            return Validation(_loss(labels, probabilities), float((probabilities.argmax(axis=1) == labels).mean()))

        fit_stage(model, self.config, state, examples, validate, self._strategy, checkpoint, self._reporter, log)

    def single_backbone(self) -> Any:
        """The backbone on one device in float32: what a strategy or a precision wove in is left behind."""
        if self._strategy.num_replicas_in_sync == 1 and self._policy == "float32":
            return self.backbone
        fresh = build_backbone(self.config.backbone, self.config.image_size, None, trainable=False)
        fresh.set_weights(self.backbone.get_weights())
        return fresh

    def single_head(self) -> Any:
        """The head alike, without dropout, which does nothing here but would be exported with its random state."""
        fresh = build_head(self.head.input_shape[-1], self.head.output_shape[-1], dropout=0.0)
        fresh.set_weights(self.head.get_weights())
        return fresh

    def _extractor(self, backbone: Any) -> FeatureExtractor:
        return FeatureExtractor(backbone, self.config, self.info, self._reporter)

    def _frozen_features(self, name: str) -> Features:
        if name not in self._frozen:
            self._frozen_extractor = self._frozen_extractor or self._extractor(self.single_backbone())
            self._frozen[name] = self._frozen_extractor.cached(name)
        return self._frozen[name]

    def _classifier(self, stage: Stage) -> Any:
        with self._precision(), self._strategy.scope():
            augmentation = build_augmentation(stage.augmentation, self.config.seed) if stage.augmentation else None
            return build_classifier(self.backbone, self.head, augmentation)

    def _validator(self, stage: Stage) -> Callable[[], tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        if stage.frozen:
            inputs: Inputs
            inputs, labels, _ = self._frozen_features("val")
            predictor = Predictor(self.head, self._strategy)
        else:
            split = self._pixels("val")
            inputs, labels = split.pixels, split.labels
            predictor = Predictor(self._classifier(dataclasses.replace(stage, augmentation=None)), self._strategy)
        return lambda: (labels, predictor(inputs))

    def _pixels(self, name: str) -> Split:
        size = self.config.image_size
        if is_cached(self.info, name, size):
            self._reporter.stage(f"pixels of the {name} split: from the cache")
            return load_split(self.info, name, size)
        advance = self._reporter.steps(f"decoding the {name} split", self.info.count(name))
        return load_split(self.info, name, size, advance)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self._policy)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)


def _finished(
    network: _Network,
    spec: ModelSpec,
    threshold_for: ThresholdTarget,
    history: list[dict[str, Any]],
    resumed_seconds: float,
    before: Evaluation,
) -> Trained:
    backbone = network.single_backbone()
    features = network.final_features(backbone)
    head = network.single_head()
    logits = {name: head_logits(head, features[name].values) for name in SPLITS}
    temperature = fit_temperature(logits["val"], features["val"].labels)
    scale_logits(head, temperature)
    probabilities = {name: apply_temperature(logits[name], temperature) for name in SPLITS}
    if len(spec.classes) == 2:
        positive = spec.classes.index(spec.positive_class)
        is_positive = features["val"].labels == positive
        threshold = choose_threshold(probabilities["val"][:, positive], is_positive, threshold_for)
        spec = dataclasses.replace(spec, threshold=threshold)
    projection = fit_projection(features["train"].values)
    spec = dataclasses.replace(spec, embedding_size=projection.matrix.shape[1])
    embedding = np.asarray((features["train"].values - projection.mean) @ projection.matrix, np.float32)
    return Trained(
        serving=build_serving(backbone, head, projection),
        spec=spec,
        history=history,
        resumed_seconds=resumed_seconds,
        before=before,
        validation=evaluate(spec, features["val"].labels, probabilities["val"]),
        test=evaluate(spec, features["test"].labels, probabilities["test"]),
        uncalibrated={
            title: evaluate(spec, features[name].labels, apply_temperature(logits[name], 1.0))
            for title, name in (("validation", "val"), ("test", "test"))
        },
        temperature=temperature,
        test_probabilities=probabilities["test"],
        reference=reference_statistics(probabilities["train"], embedding, features["train"].brightness),
    )


def _policy(mixed_precision: bool) -> str:
    """Keras' name of the precision: bfloat16 where the device computes with it, which needs no scaling of the loss."""
    if not mixed_precision:
        return "float32"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    capable = all(tf.config.experimental.get_device_details(gpu)["compute_capability"] >= (8, 0) for gpu in gpus)
    return "mixed_bfloat16" if capable else "mixed_float16"


def evaluate(spec: ModelSpec, labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> Evaluation:
    """Evaluate probabilities float32[images, classes] against the indices of the classes, int64[images]."""
    names = [spec.classes[label] for label in labels]
    counts = metrics.count(spec.classes, names, decide(probabilities, spec), probabilities)
    return Evaluation(_loss(labels, probabilities), counts)


def _loss(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> float:
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_label, 1e-7)).mean())
