"""Trainings: both paths from prepared data to a network, and that what is exported is what was evaluated."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import environment

from model import metrics
from model.bundle import open_bundle
from model.calibration import ThresholdTarget
from model.dataset import load_split
from model.dataset_info import read_dataset
from model.engine import decide, open_engine
from model.errors import InputError
from model.export import export_model
from model.network import SMALL_CNN
from model.preprocess import brightness
from model.spec import Stage, TrainConfig
from model.training import TrainingOptions, evaluate, train
from model.training_loop import Reporter

FROZEN = TrainConfig(
    recipe="frozen",
    backbone=SMALL_CNN,
    image_size=32,
    split=(60, 20, 20),
    batch_size=16,
    stages=(Stage("head", epochs=3, learning_rate=0.01, frozen=True),),
)


class Listener(Reporter):
    """Keeps what was said, and how many steps each bar made."""

    def __init__(self):
        self.stages = []
        self.done = {}

    def stage(self, text):
        self.stages.append(text)

    def steps(self, text, total):
        self.done[text] = 0

        def advance(count):
            self.done[text] += count
            assert self.done[text] <= total

        return advance


def run(data, logs, config, reporter=None):
    info = read_dataset(str(data))
    options = TrainingOptions(None, "Positive", ThresholdTarget("f1"))
    return train(config, info, options, tf.distribute.get_strategy(), logs, reporter=reporter)


def serve(trained, pixels):
    return trained.serving.predict(np.asarray(pixels), verbose=0)


def cross_entropy(probabilities, labels):
    return float(-np.log(probabilities[np.arange(len(labels)), labels].astype(np.float64)).mean())


def assert_reference_is_of_the_training_images(reference, outputs, pixels):
    """``reference.json`` against what the exported network says of the training images."""
    count = outputs["embedding"].shape[1]
    assert count > 10
    assert reference["images"] == len(pixels)
    np.testing.assert_allclose(reference["embedding_mean"], np.zeros(count), atol=1e-2)
    np.testing.assert_allclose(reference["embedding_covariance"], np.eye(count), atol=2e-2)
    np.testing.assert_allclose(outputs["embedding"].mean(axis=0), np.zeros(count), atol=2e-2)
    np.testing.assert_allclose(np.cov(outputs["embedding"], rowvar=False), np.eye(count), atol=5e-2)
    scores = np.histogram(outputs["probabilities"].max(axis=1), 32, (0, 1))[0]
    assert np.abs(np.array(reference["score_histogram"]) - scores).sum() <= 2
    levels = np.histogram([brightness(image) for image in pixels], 32, (0, 255))[0]
    assert reference["brightness_histogram"] == levels.tolist()


@pytest.fixture(scope="module")
def own_data(tiny_data, tmp_path_factory, mirrored_process):
    folder = tmp_path_factory.mktemp("training") / "data"
    shutil.copytree(tiny_data, folder, ignore=shutil.ignore_patterns("_cache"))
    return folder


@pytest.fixture(scope="module")
def frozen(own_data):
    listener = Listener()
    return run(own_data, own_data.with_name("frozen-logs"), FROZEN, listener), listener


def test_the_whole_network_is_trained_and_every_epoch_recorded(tiny_bundle):
    history = json.loads((tiny_bundle / "training" / "history.json").read_text())
    assert [(row["stage"], row["epoch"]) for row in history] == [("network", epoch) for epoch in range(1, 9)]
    assert history[0]["learning_rate"] == pytest.approx(3e-3)
    rates = [row["learning_rate"] for row in history]
    assert rates == sorted(rates, reverse=True)
    assert all(row["images_per_second"] > 0 and 0 <= row["input_wait"] < 1 for row in history)
    assert list((tiny_bundle / "training" / "tensorboard").rglob("events.out.tfevents.*"))


def test_validation_in_the_last_epoch_is_the_evaluation_before_calibration(tiny_bundle, frozen):
    # The same weights on the same images by two ways: all replicas on the pixels, and LiteRT's features.
    trained = frozen[0]
    assert trained.uncalibrated["validation"].loss == pytest.approx(trained.history[-1]["val_loss"], abs=1e-4)
    history = json.loads((tiny_bundle / "training" / "history.json").read_text())
    engine = open_engine("litert", open_bundle(str(tiny_bundle)), threads=1)
    split = load_split(read_dataset(str(tiny_bundle.with_name("data"))), "val", 32)
    probabilities = np.concatenate(
        [engine.predict(split.pixels[start : start + 8]).probabilities for start in range(0, len(split.labels), 8)]
    )
    accuracy = (probabilities.argmax(axis=1) == split.labels).mean()
    assert accuracy == pytest.approx(history[-1]["val_accuracy"])


def test_calibration_lowers_the_loss_and_moves_no_image_to_another_class(frozen, own_data):
    trained = frozen[0]
    assert trained.temperature != 1.0
    assert trained.validation.loss <= trained.uncalibrated["validation"].loss
    split = load_split(read_dataset(str(own_data)), "test", 32)
    served = serve(trained, split.pixels)["probabilities"]
    np.testing.assert_allclose(served, trained.test_probabilities, atol=1e-5)
    # At the threshold 0.5 the calibrated network decides as the one before it.
    halved = dataclasses.replace(trained.spec, threshold=0.5)
    counts = evaluate(halved, split.labels, served).counts
    np.testing.assert_array_equal(counts.confusion, evaluate_uncalibrated(trained, split, halved))


def evaluate_uncalibrated(trained, split, spec):
    logits = np.log(serve(trained, split.pixels)["probabilities"].astype(np.float64)) * trained.temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return evaluate(
        spec, split.labels, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    ).counts.confusion


def test_training_lowers_the_loss_and_a_trained_bundle_beats_chance(frozen, tiny_bundle):
    trained, _ = frozen
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert trained.before.counts.confusion.sum() == trained.validation.counts.confusion.sum() == 29
    assert abs(trained.before.loss - trained.validation.loss) > 0.01
    measured = open_bundle(str(tiny_bundle)).values["metrics"]
    assert measured["validation"]["loss"] < measured["before"]["loss"]
    assert measured["before"]["accuracy"] < 0.75 < measured["validation"]["accuracy"]


def test_the_spec_says_what_was_trained(frozen, own_data):
    spec = frozen[0].spec
    assert (spec.classes, spec.positive_class) == (("Negative", "Positive"), "Positive")
    assert (spec.image_size, spec.backbone, spec.recipe) == (32, SMALL_CNN, "frozen")
    assert spec.data_fingerprint == read_dataset(str(own_data)).fingerprint
    assert spec.embedding_size == len(frozen[0].reference["embedding_mean"])


def test_a_frozen_backbone_keeps_its_weights_and_the_head_is_trained(frozen, own_data):
    trained, listener = frozen
    assert [row["epoch"] for row in trained.history] == [1, 2, 3]
    info = read_dataset(str(own_data))
    assert listener.done == {f"features of the {name} split": info.count(name) for name in ("train", "val", "test")}
    kernels = [variable for variable in trained.serving.variables if "moving_variance" in variable.path]
    assert len(kernels) == 4
    for variance in kernels:
        np.testing.assert_array_equal(np.asarray(variance), 1)
    for name, evaluation in (("val", trained.validation), ("test", trained.test)):
        split = load_split(info, name, 32)
        probabilities = serve(trained, split.pixels)["probabilities"]
        assert cross_entropy(probabilities, split.labels) == pytest.approx(evaluation.loss, abs=1e-4)
    pixels = np.asarray(load_split(info, "train", 32).pixels)
    assert_reference_is_of_the_training_images(trained.reference, serve(trained, pixels), pixels)


def test_features_are_computed_once_and_never_for_another_backbone(frozen, own_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(own_data, data)
    for shard in data.rglob("*.tfrecord"):
        shard.unlink()
    for pixels in (data / "_cache").rglob("*.npy"):
        pixels.unlink()
    listener = Listener()
    again = run(data, tmp_path / "logs", FROZEN, listener)
    assert listener.done == {}
    assert [stage for stage in listener.stages if "from the cache" in stage] == [
        f"features of the {name} split: from the cache" for name in ("val", "train", "test")
    ]
    assert again.test.loss == frozen[0].test.loss
    # Another seed is another random backbone, whose features are not there.
    with pytest.raises(InputError, match="cannot read the prepared shards"):
        run(data, tmp_path / "logs", dataclasses.replace(FROZEN, seed=1))


def test_a_damaged_feature_cache_is_named(frozen, own_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(own_data, data)
    (features,) = (data / "_cache").rglob("train-features-*.npz")
    features.write_bytes(features.read_bytes()[:-100])
    with warnings.catch_warnings():
        # NumPy leaves the damaged file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(InputError, match=r"the cache .* is damaged"):
            run(data, tmp_path / "logs", FROZEN)
        gc.collect()


@pytest.mark.parametrize("name", ["litert", "savedmodel"])
def test_a_reloaded_bundle_gives_the_metrics_it_carries(tiny_bundle, tiny_data, name):
    bundle = open_bundle(str(tiny_bundle))
    engine = open_engine(name, bundle, threads=1)
    info = read_dataset(str(tiny_data))
    for split_name, stored in (("val", "validation"), ("test", "test")):
        split = load_split(info, split_name, 32)
        probabilities = np.concatenate(
            [engine.predict(split.pixels[start : start + 8]).probabilities for start in range(0, len(split.labels), 8)]
        )
        labels = [info.classes[label] for label in split.labels]
        counts = metrics.count(bundle.spec.classes, labels, decide(probabilities, bundle.spec), probabilities)
        found, expected = metrics.compute(counts, "Positive"), bundle.values["metrics"][stored]
        assert found["confusion_matrix"] == expected["confusion_matrix"]
        assert found["accuracy"] == expected["accuracy"]
        assert expected["images"] == info.count(split_name)
        assert cross_entropy(probabilities, split.labels) == pytest.approx(expected["loss"], abs=1e-4)


def test_the_reference_in_a_bundle_is_of_the_images_it_was_trained_on(tiny_bundle, tiny_data):
    pixels = load_split(read_dataset(str(tiny_data)), "train", 32).pixels
    engine = open_engine("savedmodel", open_bundle(str(tiny_bundle)))
    batches = [engine.predict(pixels[start : start + 32])._asdict() for start in range(0, len(pixels), 32)]
    outputs = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    reference = json.loads((tiny_bundle / "reference.json").read_text())
    assert_reference_is_of_the_training_images(reference, outputs, pixels)


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_an_empty_split_is_refused_by_name(own_data, tmp_path, empty):
    values = json.loads((own_data / "dataset.json").read_text())
    values["counts"][empty] = dict.fromkeys(values["classes"], 0)
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"the {empty} split of .* is empty: prepare more images or another --split"):
        run(tmp_path, tmp_path / "logs", FROZEN)


def test_mixed_precision_trains_in_sixteen_bits_and_leaves_a_float32_network(own_data, tmp_path):
    (stage,) = FROZEN.stages
    config = dataclasses.replace(FROZEN, stages=(dataclasses.replace(stage, frozen=False, epochs=2),))
    info = read_dataset(str(own_data))
    options = TrainingOptions(None, "Positive", ThresholdTarget("f1"), mixed_precision=True)
    trained = train(config, info, options, tf.distribute.get_strategy(), tmp_path)
    assert np.isfinite([row["loss"] for row in trained.history]).all()
    assert {layer.compute_dtype for layer in trained.serving._flatten_layers()} <= {"float32", "uint8"}
    assert {weight.dtype for weight in trained.serving.weights} == {"float32"}
    served = serve(trained, load_split(info, "test", 32).pixels)["probabilities"]
    np.testing.assert_allclose(served, trained.test_probabilities, atol=1e-5)


MIRRORED = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np
from model import export, features, training
from model.calibration import ThresholdTarget
from model.dataset import load_split
from model.dataset_info import read_dataset
from model.recipes import recipe_named
from model.strategy import make_strategy
from model.training import TrainingOptions
data, out = map(Path, sys.argv[1:])
strategy = make_strategy("mirrored", 2)
features.has_gpu = lambda: True
# So that what is served are the probabilities of the training.
training.fit_temperature = lambda *_: 1.0
info = read_dataset(str(data))
small = recipe_named("small").with_overrides(image_size=32, epochs=2, batch_size=37)
(network,) = small.stages
whole = dataclasses.replace(small, stages=(dataclasses.replace(network, averaging=0.5),))
head = dataclasses.replace(network, frozen=True, augmentation=None, epochs=1)
frozen = dataclasses.replace(whole, stages=(head,))
result = {"replicas": strategy.num_replicas_in_sync}
predict = training.Predictor.__call__
for name, config in (("whole", whole), ("frozen", frozen)):
    def watched(self, inputs):
        outputs = predict(self, inputs)
        np.save(out / f"{name}-{len(outputs)}-{outputs.shape[1]}.npy", outputs)
        return outputs
    training.Predictor.__call__ = watched
    options = TrainingOptions(None, "Positive", ThresholdTarget("f1"))
    trained = training.train(config, info, options, strategy, out / "logs")
    result[name] = trained.history
    pixels = np.asarray(load_split(info, "val", 32).pixels)
    np.save(out / f"{name}-val-serving.npy", trained.serving(pixels, training=False)["probabilities"])
    if name == "whole":
        export.convert_to_litert = lambda model: b""
        export.export_model(trained.serving, out / "bundle")
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def mirrored_process(tiny_data, tmp_path_factory):
    """Trainings on two devices, with splits and batches that they cannot share evenly; features as on GPUs.

    TensorFlow splits the CPU once per process, so they have one of their own, which runs beside the other tests.
    """
    out = tmp_path_factory.mktemp("mirrored")
    shutil.copytree(tiny_data, out / "data", ignore=shutil.ignore_patterns("_cache"))
    with open(out / "stdout", "w") as stdout, open(out / "stderr", "w") as stderr:
        command = [sys.executable, "-c", MIRRORED, str(out / "data"), str(out)]
        with subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment()) as process:
            yield process, out
            process.kill()


@pytest.fixture(scope="module")
def mirrored(mirrored_process):
    process, out = mirrored_process
    assert process.wait(timeout=300) == 0, (out / "stderr").read_text()
    return out, json.loads((out / "stdout").read_text().splitlines()[-1])


def predicted_by_two(out, path, images):
    """Probabilities of a split after the last epoch, each half of its images by one of the two devices."""
    return np.load(out / f"{path}-{images}-2.npy")


def test_mirrored_training_predicts_what_the_reloaded_export_predicts(mirrored, own_data):
    out, results = mirrored
    assert results["replicas"] == 2
    serve = tf.saved_model.load(str(out / "bundle")).signatures["serving_default"]
    info = read_dataset(str(own_data))
    probabilities = serve(pixels=tf.constant(load_split(info, "val", 32).pixels))["probabilities"].numpy()
    np.testing.assert_allclose(probabilities, predicted_by_two(out, "whole", info.count("val")), atol=1e-5)


@pytest.mark.parametrize("path", ["whole", "frozen"])
def test_mirrored_training_predicts_what_the_network_to_export_predicts(mirrored, own_data, path):
    out, _ = mirrored
    probabilities = np.load(out / f"{path}-val-serving.npy")
    assert np.ptp(probabilities) > 0.01
    images = read_dataset(str(own_data)).count("val")
    np.testing.assert_allclose(probabilities, predicted_by_two(out, path, images), atol=1e-5)


@pytest.mark.parametrize("path", ["whole", "frozen"])
def test_devices_that_cannot_share_the_images_evenly_train_all_the_same(mirrored, own_data, path):
    # 75 images in batches of 74 and 29 to validate with: one left over for two devices, and odd first batches.
    info = read_dataset(str(own_data))
    assert (info.count("train"), info.count("val")) == (75, 29)
    history = mirrored[1][path]
    assert len(history) == (2 if path == "whole" else 1)
    assert all(np.isfinite([row["loss"], row["val_loss"]]).all() for row in history)


def test_an_export_predicts_what_the_network_before_it_predicts(frozen, own_data, tmp_path):
    trained, _ = frozen
    export_model(trained.serving, tmp_path)
    pixels = np.asarray(load_split(read_dataset(str(own_data)), "test", 32).pixels)
    loaded = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](pixels=tf.constant(pixels))
    for name, values in serve(trained, pixels).items():
        np.testing.assert_allclose(loaded[name].numpy(), values, rtol=1e-5, atol=1e-5)
    assert Path(tmp_path, "model.tflite").is_file()
