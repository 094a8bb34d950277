"""Epochs: what is learned, when a stage stops, which weights it keeps, and that it goes on where it was cut off."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import environment
from keras import layers

from model.checkpoint import Checkpoint, TrainingState
from model.spec import Stage, TrainConfig
from model.training_loop import Examples, Predictor, Reporter, Validation, fit_stage

CONFIG = TrainConfig(
    recipe="test",
    backbone="small_cnn",
    image_size=32,
    split=(60, 20, 20),
    batch_size=8,
    stages=(Stage("head", epochs=4, learning_rate=0.05, frozen=True),),
)


def examples(count=37):
    """Points in the plane, of two classes by the sign of their first coordinate."""
    inputs = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0] > 0).astype(np.int64))


def network(dropout=0.0):
    keras.utils.set_random_seed(1)
    inputs = layers.Input((2,))
    hidden = layers.Dropout(dropout)(layers.Dense(8, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden))


def staged(**values):
    (stage,) = CONFIG.stages
    return dataclasses.replace(CONFIG, stages=(dataclasses.replace(stage, **values),))


def fit(model, config, validate=None, state=None, checkpoint=None, reporter=None, points=None):
    """Fit the first stage; returns the state and the rows that were logged."""
    points = points or examples()
    state = state or TrainingState()
    logged = []

    def measure():
        probabilities = np.asarray(model(points.inputs))
        of_label = probabilities[np.arange(len(points.labels)), points.labels]
        return Validation(float(-np.log(of_label).mean()), float((probabilities.argmax(1) == points.labels).mean()))

    fit_stage(
        *(model, config, state, points, validate or measure, tf.distribute.get_strategy(), checkpoint),
        *(reporter or Reporter(), lambda epoch, row: logged.append((epoch, row))),
    )
    return state, logged


def weights(model):
    return [np.asarray(weight) for weight in model.get_weights()]


def sequence(losses, model, seen):
    """A validation that gives these losses in turn, and keeps the weights that it was asked for."""
    remaining = iter(losses)

    def validate():
        seen.append(weights(model))
        return Validation(next(remaining), 0.5)

    return validate


def test_a_stage_learns_and_its_history_has_a_row_per_epoch():
    model = network()
    state, logged = fit(model, CONFIG)
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4]
    assert logged == list(enumerate(state.history, 1))
    assert state.history[-1]["loss"] < state.history[0]["loss"] / 2
    assert state.history[-1]["val_accuracy"] > 0.9
    assert [row["learning_rate"] for row in state.history] == pytest.approx([0.05] * 4)


def test_a_step_is_the_step_of_keras_on_the_mean_loss_of_its_images():
    points = examples(5)
    ours, theirs = network(), network()
    fit(ours, staged(epochs=1), points=points)
    theirs.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy")
    theirs.train_on_batch(points.inputs, np.eye(2, dtype=np.float32)[points.labels])
    for weight, expected in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)


def test_loss_and_accuracy_of_an_epoch_count_every_image_once():
    # Without a step, as it were: a learning rate of nothing.
    points = examples(13)
    model = network()
    before = np.asarray(model(points.inputs))
    state, _ = fit(model, staged(epochs=1, learning_rate=1e-12), points=points)
    of_label = before[np.arange(13), points.labels]
    assert state.history[0]["loss"] == pytest.approx(-np.log(of_label).mean(), abs=1e-5)
    assert state.history[0]["accuracy"] == pytest.approx((before.argmax(1) == points.labels).mean(), abs=1e-6)


def test_label_smoothing_raises_the_loss_of_a_sure_network():
    plain, _ = fit(network(), CONFIG)
    smoothed, _ = fit(network(), dataclasses.replace(CONFIG, label_smoothing=0.2))
    assert smoothed.history[-1]["loss"] > plain.history[-1]["loss"] + 0.1


def test_a_cosine_ends_near_zero():
    state, _ = fit(network(), staged(cosine=True))
    rates = [row["learning_rate"] for row in state.history]
    np.testing.assert_allclose(rates, 0.05 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2, rtol=1e-5)


def test_patience_stops_and_goes_back_to_the_best_weights():
    model, seen = network(), []
    state, _ = fit(model, staged(epochs=9, patience=2), sequence([3.0, 1.0, 2.0, 1.5, 0.5], model, seen))
    assert len(state.history) == len(seen) == 4
    for weight, best, last in zip(weights(model), seen[1], seen[3], strict=True):
        np.testing.assert_array_equal(weight, best)
        assert np.abs(weight - last).max() > 1e-4


def test_without_patience_all_epochs_are_trained_and_the_last_weights_kept():
    model, seen = network(), []
    fit(model, CONFIG, sequence([1.0, 2.0, 3.0, 4.0], model, seen))
    for weight, last in zip(weights(model), seen[3], strict=True):
        np.testing.assert_array_equal(weight, last)


def test_averaged_weights_are_validated_and_kept_and_training_goes_on_from_the_others():
    model, seen = network(), []
    plain, plain_seen = network(), []
    fit(plain, CONFIG, sequence([1.0] * 4, plain, plain_seen))
    # An average that forgets at once is the plain training.
    fit(model, staged(averaging=0.0), sequence([1.0] * 4, model, seen))
    for weight, expected in zip(seen[3], plain_seen[3], strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-6)
    slow, slow_seen = network(), []
    fit(slow, staged(averaging=0.9), sequence([1.0] * 4, slow, slow_seen))
    start = weights(network())
    for weight, kept, last, first in zip(weights(slow), slow_seen[3], plain_seen[3], start, strict=True):
        np.testing.assert_array_equal(weight, kept)
        assert np.abs(kept - first).max() < np.abs(last - first).max()


class Interruption(BaseException):
    pass


class Interrupting(Reporter):
    """Interrupts in the middle of an epoch."""

    def __init__(self, epoch):
        self._epoch = epoch

    def epoch(self, stage, epoch, steps):
        if epoch != self._epoch:
            return lambda _: None
        self._left = steps // 2

        def advance(_):
            self._left -= 1
            if not self._left:
                raise Interruption

        return advance


@pytest.mark.parametrize("values", [{}, {"cosine": True, "averaging": 0.5}, {"patience": 1, "epochs": 9}])
@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupted_stage_ends_with_the_weights_of_an_undisturbed_one(tmp_path, values, epoch):
    config = staged(**values)
    undisturbed = network(dropout=0.5)
    expected, _ = fit(undisturbed, config)
    checkpoint = Checkpoint(tmp_path / "state.npz", "test")
    with pytest.raises(Interruption):
        fit(network(dropout=0.5), config, checkpoint=checkpoint, reporter=Interrupting(epoch))
    model = network(dropout=0.5)
    state, logged = fit(model, config, state=checkpoint.load(), checkpoint=checkpoint)
    assert [row["epoch"] for row in state.history] == [row["epoch"] for row in expected.history]
    assert [number for number, _ in logged] == [row["epoch"] for row in expected.history[epoch - 1 :]]
    for weight, wanted in zip(weights(model), weights(undisturbed), strict=True):
        np.testing.assert_allclose(weight, wanted, atol=1e-6)


def test_a_finished_stage_is_not_trained_again_and_gives_its_weights(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.npz", "test")
    model = network()
    fit(model, staged(averaging=0.9), checkpoint=checkpoint)
    again = network()
    _, logged = fit(again, staged(averaging=0.9), state=checkpoint.load(), checkpoint=checkpoint)
    assert logged == []
    for weight, wanted in zip(weights(again), weights(model), strict=True):
        np.testing.assert_array_equal(weight, wanted)


def test_a_predictor_gives_every_image_once_and_knows_new_weights():
    model, points = network(), examples(300)
    predictor = Predictor(model, tf.distribute.get_strategy())
    np.testing.assert_allclose(predictor(points.inputs), np.asarray(model(points.inputs)), atol=1e-6)
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    np.testing.assert_allclose(predictor(points.inputs), np.asarray(model(points.inputs)), atol=1e-6)


KILLED = """
import os, signal, sys
from pathlib import Path
from model import training_progress
from model.recipes import recipe_named
from model.training_job import TrainingJob, run_training
data, out, kill_in = sys.argv[1], sys.argv[2], int(sys.argv[3])
epoch_of = training_progress.ConsoleReporter.epoch
def epoch(self, stage, number, steps):
    def advance(_):
        advance.left -= 1
        if number == kill_in and not advance.left:
            os.kill(os.getpid(), signal.SIGKILL)
    advance.left = steps // 2
    return advance
training_progress.ConsoleReporter.epoch = epoch
config = recipe_named("small").with_overrides(image_size=32, epochs=3, batch_size=8)
run_training(TrainingJob(data=data, out=out, config=config, deterministic=True, resume=kill_in == 0))
"""


def run_killed(data, out, kill_in):
    command = [sys.executable, "-c", KILLED, str(data), str(out), str(kill_in)]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def test_a_training_killed_in_the_middle_of_an_epoch_resumes_to_the_same_network(tiny_data, tmp_path):
    undisturbed = run_killed(tiny_data, tmp_path / "undisturbed", 0)
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = run_killed(tiny_data, tmp_path / "killed", 2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / "killed.checkpoint.npz").is_file()
    resumed = run_killed(tiny_data, tmp_path / "killed", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after epoch 1 of stage network" in resumed.stderr
    history = json.loads((tmp_path / "killed" / "training" / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for name in ("killed", "undisturbed"):
        assert not (tmp_path / f"{name}.checkpoint.npz").exists()
    networks = [keras.models.load_model(tmp_path / name / "model.keras") for name in ("killed", "undisturbed")]
    for weight, wanted in zip(weights(networks[0]), weights(networks[1]), strict=True):
        np.testing.assert_allclose(weight, wanted, atol=1e-6)
