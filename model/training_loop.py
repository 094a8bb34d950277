"""One stage of a training: epochs of steps over all replicas, validated, and saved so that they can be gone on with.

Keras' own ``fit`` is not used: it neither runs on several workers (Keras 3), nor shares uneven batches out to replicas,
nor goes on in the middle of a training with the same order of images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model.checkpoint import Checkpoint, TrainingState
from model.dataset import Inputs, distribute, global_batches
from model.spec import Stage, TrainConfig

PREDICT_BATCH = 256


class Reporter:
    """Follows a training; this one says nothing."""

    def stage(self, text: str) -> None:
        """A line on what begins now."""

    def steps(self, text: str, total: int) -> Callable[[int], None]:
        """Begin a bar of ``total`` steps; the returned function moves it on."""
        return lambda _: None

    def epoch(self, stage: Stage, epoch: int, steps: int) -> Callable[[int], None]:
        """Begin the bar of an epoch, from 1 on; the returned function moves it on."""
        return lambda _: None

    def epoch_ended(self, stage: Stage, row: dict[str, Any]) -> None:
        """The epoch has ended, with this row of the history."""


class Examples(NamedTuple):
    """What a network learns from: one input per image, and int64[images], index of the class."""

    inputs: Inputs
    labels: npt.NDArray[np.int64]


class Validation(NamedTuple):
    """Loss (categorical cross-entropy in nats) and accuracy in [0, 1] on the validation split."""

    loss: float
    accuracy: float


def fit_stage(
    model: Any,
    config: TrainConfig,
    state: TrainingState,
    examples: Examples,
    validate: Callable[[], Validation],
    strategy: Any,
    checkpoint: Checkpoint | None,
    reporter: Reporter,
    log: Callable[[int, dict[str, Any]], None],
) -> None:
    """Train the stage that the state is in, from the epoch that it is at; the model ends with the weights to keep.

    Args:
        model: from inputs to probabilities float32[batch, classes], made in the strategy's scope.
        config: the recipe.
        state: where to begin; gains a row of history per epoch.
        examples: the training split.
        validate: measures the model as it is now.
        strategy: a tf.distribute strategy. The global batch is the recipe's times the replicas, and so is the learning
            rate (linear scaling, Goyal et al. 2017).
        checkpoint: where the state is saved at the end of each epoch; None for nowhere.
        reporter: told how far it is.
        log: called at the end of each epoch with its number over all stages, from 1 on, and its row.
    """
    stage = config.stages[state.stage]
    batch_size = config.batch_size * strategy.num_replicas_in_sync
    steps = -(-len(examples.labels) // batch_size)
    with strategy.scope():
        optimizer = _optimizer(stage, model.dtype_policy.name, strategy.num_replicas_in_sync, steps)
        optimizer.build(model.trainable_variables)
    kept: list[npt.NDArray[Any]] | None = None
    if state.arrays:
        _assign(model.variables, state.arrays["model"])
        _assign(optimizer.variables, state.arrays["optimizer"])
        kept = list(state.arrays["kept"]) or None
    step = _training_step(model, optimizer, strategy, config.label_smoothing)
    rows = [row for row in state.history if row["stage"] == stage.name]
    for epoch in range(len(rows) + 1, stage.epochs + 1):
        if _stops(stage, rows):
            break
        indices = global_batches(len(examples.labels), batch_size, (config.seed, 1000 * state.stage + epoch))
        advance = reporter.epoch(stage, epoch, steps)
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        started = time.perf_counter()
        row = {"stage": stage.name, "epoch": epoch} | _run_epoch(step, strategy, examples, indices, advance)
        validated, weights = _validated(model, optimizer, stage, validate)
        row |= {
            "val_accuracy": validated.accuracy,
            "val_loss": validated.loss,
            "learning_rate": rate,
            "seconds": time.perf_counter() - started,
        }
        if stage.patience is None or all(validated.loss < earlier["val_loss"] for earlier in rows):
            kept = weights
        rows.append(row)
        state.history.append(row)
        state.arrays = {
            "model": _values(model.variables),
            "optimizer": _values(optimizer.variables),
            "kept": kept or [],
        }
        if checkpoint:
            checkpoint.save(state)
        log(len(state.history), row)
        reporter.epoch_ended(stage, row)
    if kept:
        _assign(model.variables, kept)
    state.arrays = {}


class Predictor:
    """Runs a network over all replicas; what is trained meanwhile shows in the next call.

    Args:
        model: from inputs to float32[batch, ...].
        strategy: the tf.distribute strategy that it was made under.
    """

    def __init__(self, model: Any, strategy: Any) -> None:
        self._strategy = strategy

        @tf.function
        def step(batch: Any) -> Any:
            return strategy.run(lambda inputs, *_: model(inputs, training=False), args=batch)

        self._step = step

    def __call__(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """What the network says of each image, float32[images, ...]."""
        replicas = self._strategy.num_replicas_in_sync
        indices = global_batches(len(inputs), PREDICT_BATCH // replicas * replicas)
        batches = distribute(self._strategy, inputs, np.zeros(len(inputs), np.int64), indices)
        outputs = [self._strategy.gather(self._step(batch), axis=0) for batch in batches]
        return np.concatenate([np.asarray(output, np.float32) for output in outputs])[: len(inputs)]


def _optimizer(stage: Stage, precision: str, replicas: int, steps: int) -> Any:
    rate = stage.learning_rate * replicas
    schedule = keras.optimizers.schedules.CosineDecay(rate, stage.epochs * steps) if stage.cosine else rate
    averaging = {} if stage.averaging is None else {"use_ema": True, "ema_momentum": stage.averaging}
    optimizer = keras.optimizers.Adam(schedule, **averaging)
    # float16 has too few small numbers for gradients; bfloat16 has those of float32.
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _training_step(model: Any, optimizer: Any, strategy: Any, label_smoothing: float) -> Any:
    def on_replica(inputs: Any, labels: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            probabilities = model(inputs, training=True)
            targets = tf.one_hot(labels, probabilities.shape[-1])
            losses = keras.losses.categorical_crossentropy(targets, probabilities, label_smoothing=label_smoothing)
            # The weights of a global batch sum to 1, so that the sum over replicas is the mean over its images.
            loss = tf.reduce_sum(losses * weights)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)
        correct = tf.cast(tf.argmax(probabilities, axis=1) == labels, tf.float32)
        return tf.stack([loss, tf.reduce_sum(correct * weights)])

    @tf.function
    def step(batch: Any) -> Any:
        return strategy.reduce("SUM", strategy.run(on_replica, args=batch), axis=None)

    return step


def _run_epoch(
    step: Any, strategy: Any, examples: Examples, indices: npt.NDArray[np.int64], advance: Callable[[int], None]
) -> dict[str, Any]:
    images = (indices >= 0).sum(axis=1)
    batches = iter(distribute(strategy, examples.inputs, examples.labels, indices))
    sums = np.zeros(2)
    waited = busy = 0.0
    counted = 0
    for number, count in enumerate(images):
        began = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        sums += count * np.asarray(step(batch), np.float64)
        ended = time.perf_counter()
        # The first step builds the graph, and the first batch fills the pipeline.
        if number:
            waited += got - began
            busy += ended - began
            counted += int(count)
        advance(1)
    loss, accuracy = sums / images.sum()
    return {
        "accuracy": float(accuracy),
        "loss": float(loss),
        "images_per_second": counted / busy if busy else None,
        "input_wait": waited / busy if busy else None,
    }


def _validated(
    model: Any, optimizer: Any, stage: Stage, validate: Callable[[], Validation]
) -> tuple[Validation, list[npt.NDArray[Any]] | None]:
    """The validation, and the values of the model's variables that it is of, where they may be wanted later."""
    if stage.averaging is None:
        return validate(), None if stage.patience is None else _values(model.variables)
    raw = _values(model.trainable_variables)
    optimizer.finalize_variable_values(model.trainable_variables)
    averaged = _values(model.variables)
    validated = validate()
    _assign(model.trainable_variables, raw)
    return validated, averaged


def _stops(stage: Stage, rows: list[dict[str, Any]]) -> bool:
    if stage.patience is None or not rows:
        return False
    losses = [row["val_loss"] for row in rows]
    return len(losses) - 1 - int(np.argmin(losses)) >= stage.patience


def _values(variables: Any) -> list[npt.NDArray[Any]]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
