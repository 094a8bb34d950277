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
from model.dataset import load_split
from model.dataset_info import read_dataset
from model.engine import decide, open_engine
from model.errors import InputError
from model.export import export_model
from model.network import SMALL_CNN
from model.preprocess import brightness
from model.spec import TrainConfig
from model.training import Reporter, train

FROZEN = TrainConfig(
    recipe="frozen",
    backbone=SMALL_CNN,
    image_size=32,
    split=(60, 20, 20),
    batch_size=16,
    epochs=3,
    learning_rate=0.01,
    dropout=0.0,
    frozen=True,
    augmented=False,
    cosine=False,
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
    return train(config, info, None, tf.distribute.get_strategy(), "Positive", logs, reporter)


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
    assert history.keys() == {"accuracy", "loss", "val_accuracy", "val_loss"}
    assert [len(values) for values in history.values()] == [8, 8, 8, 8]
    assert list((tiny_bundle / "training" / "tensorboard").rglob("events.out.tfevents.*"))


def test_validation_in_the_last_epoch_is_the_evaluation_behind_it(tiny_bundle, frozen):
    # The same weights on the same images by two ways: Keras' own sums, and ours on the backbone's features.
    history = json.loads((tiny_bundle / "training" / "history.json").read_text())
    stored = open_bundle(str(tiny_bundle)).values["metrics"]["validation"]
    assert stored["loss"] == pytest.approx(history["val_loss"][-1], abs=1e-4)
    assert stored["accuracy"] == pytest.approx(history["val_accuracy"][-1])
    assert frozen[0].validation.loss == pytest.approx(frozen[0].history["val_loss"][-1], abs=1e-4)


def test_training_lowers_the_loss_and_a_trained_bundle_beats_chance(frozen, tiny_bundle):
    trained, _ = frozen
    assert trained.history["loss"][-1] < trained.history["loss"][0]
    assert trained.before.counts.confusion.sum() == trained.validation.counts.confusion.sum() == 29
    assert abs(trained.before.loss - trained.validation.loss) > 0.01
    measured = open_bundle(str(tiny_bundle)).values["metrics"]
    assert measured["validation"]["loss"] < measured["before"]["loss"]
    assert measured["before"]["accuracy"] < 0.75 < measured["validation"]["accuracy"]


def test_the_spec_says_what_was_trained(frozen, own_data):
    spec = frozen[0].spec
    assert (spec.classes, spec.positive_class) == (("Negative", "Positive"), "Positive")
    assert (spec.image_size, spec.threshold, spec.backbone, spec.recipe) == (32, 0.5, SMALL_CNN, "frozen")
    assert spec.data_fingerprint == read_dataset(str(own_data)).fingerprint
    assert spec.embedding_size == len(frozen[0].reference["embedding_mean"])


def test_a_frozen_backbone_keeps_its_weights_and_the_head_is_trained(frozen, own_data):
    trained, listener = frozen
    assert [len(values) for values in trained.history.values()] == [3, 3, 3, 3]
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
    for pixels in (data / "_cache").rglob("*-pixels.npy"):
        pixels.unlink()
    listener = Listener()
    again = run(data, tmp_path / "logs", FROZEN, listener)
    assert listener.done == {}
    assert [stage for stage in listener.stages if "from the cache" in stage] == [
        f"features of the {name} split: from the cache" for name in ("train", "val", "test")
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


MIRRORED = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np
from model import export, training
from model.dataset import load_split
from model.dataset_info import read_dataset
from model.recipes import recipe_named
from model.strategy import make_strategy
data, out = map(Path, sys.argv[1:])
strategy = make_strategy("mirrored", 2)
training.has_gpu = lambda: True
info = read_dataset(str(data))
whole = recipe_named("small").with_overrides(image_size=32, epochs=2, batch_size=37, augmented=False)
frozen = dataclasses.replace(whole, frozen=True, epochs=1)
result = {"replicas": strategy.num_replicas_in_sync}
predict = training._predict
for name, config in (("whole", whole), ("frozen", frozen)):
    def watched(model, inputs, strategy):
        outputs = predict(model, inputs, strategy)
        np.save(out / f"{name}-{len(outputs)}-{outputs.shape[1]}.npy", outputs)
        return outputs
    training._predict = watched
    trained = training.train(config, info, None, strategy, "Positive", out / "logs")
    result[name] = trained.history
    for split in ("val", "test"):
        pixels = np.asarray(load_split(info, split, 32).pixels)
        np.save(out / f"{name}-{split}-serving.npy", trained.serving(pixels, training=False)["probabilities"])
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
    """Probabilities of a split, each half of its images by one of the two devices."""
    return np.load(out / f"{path}-{images}-2.npy")


def test_mirrored_training_predicts_what_the_reloaded_export_predicts(mirrored, own_data):
    out, results = mirrored
    assert results["replicas"] == 2
    serve = tf.saved_model.load(str(out / "bundle")).signatures["serving_default"]
    info = read_dataset(str(own_data))
    for name in ("val", "test"):
        pixels = tf.constant(load_split(info, name, 32).pixels)
        probabilities = serve(pixels=pixels)["probabilities"].numpy()
        np.testing.assert_allclose(probabilities, predicted_by_two(out, "whole", info.count(name)), atol=1e-5)


@pytest.mark.parametrize("path", ["whole", "frozen"])
def test_mirrored_training_predicts_what_the_network_to_export_predicts(mirrored, own_data, path):
    out, _ = mirrored
    info = read_dataset(str(own_data))
    for name in ("val", "test"):
        probabilities = np.load(out / f"{path}-{name}-serving.npy")
        assert np.ptp(probabilities) > 0.01
        np.testing.assert_allclose(probabilities, predicted_by_two(out, path, info.count(name)), atol=1e-5)


@pytest.mark.parametrize("path", ["whole", "frozen"])
def test_devices_that_cannot_share_the_images_evenly_train_all_the_same(mirrored, own_data, path):
    # 75 images in batches of 74 and 29 to validate with: one left over for two devices, and odd first batches.
    info = read_dataset(str(own_data))
    assert (info.count("train"), info.count("val")) == (75, 29)
    history = mirrored[1][path]
    assert {len(values) for values in history.values()} == {2 if path == "whole" else 1}
    assert np.isfinite(list(history.values())).all()


def test_an_export_predicts_what_the_network_before_it_predicts(frozen, own_data, tmp_path):
    trained, _ = frozen
    export_model(trained.serving, tmp_path)
    pixels = np.asarray(load_split(read_dataset(str(own_data)), "test", 32).pixels)
    loaded = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](pixels=tf.constant(pixels))
    for name, values in serve(trained, pixels).items():
        np.testing.assert_allclose(loaded[name].numpy(), values, rtol=1e-5, atol=1e-5)
    assert Path(tmp_path, "model.tflite").is_file()
