"""Engines agree, and decisions follow the threshold."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from model import engine as engines
from model.bundle import LITERT_INT8_FILE, BundleWriter, open_bundle
from model.engine import (
    LITERT_FILES,
    LiteRtEngine,
    SavedModelEngine,
    Scores,
    check_engine,
    choose_engine,
    decide,
    open_engine,
)
from model.errors import BundleError, InputError
from model.export import convert_to_litert_int8, export_model
from model.network import build_backbone, build_head, build_serving, fit_projection
from model.spec import ModelSpec


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(str(tiny_bundle))


@pytest.fixture(scope="module")
def litert(bundle):
    return open_engine("litert", bundle, threads=2)


@pytest.fixture(scope="module")
def savedmodel(bundle):
    return open_engine("savedmodel", bundle)


def images(count: int, seed: int = 0) -> np.ndarray:
    """Flat images with a little noise, of every brightness: the network is of two minds on some of them."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(20, 236, (count, 1, 1, 3))
    return (levels + rng.integers(-20, 21, (count, 32, 32, 3))).astype(np.uint8)


@pytest.mark.parametrize("count", range(1, 9))
def test_litert_and_savedmodel_agree_on_every_batch(litert, savedmodel, count):
    pixels = images(count, seed=count)
    one, other = litert.predict(pixels), savedmodel.predict(pixels)
    assert one.probabilities.shape == other.probabilities.shape == (count, 2)
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    np.testing.assert_allclose(one.embedding, other.embedding, rtol=1e-3, atol=1e-3)


def test_the_images_of_these_tests_do_not_all_look_the_same_to_the_network(litert):
    positive = np.concatenate([litert.predict(images(8, seed)).probabilities[:, 1] for seed in range(20)])
    assert np.ptp(positive) > 0.2


@pytest.mark.parametrize("name", ["litert", "savedmodel"])
def test_an_images_scores_do_not_depend_on_its_neighbours(name, request):
    engine = request.getfixturevalue(name)
    pixels = images(engine.batch_size)
    together = engine.predict(pixels)
    reversed_batch = engine.predict(pixels[::-1])
    for values, others in zip(together, reversed_batch, strict=True):
        np.testing.assert_array_equal(values, others[::-1])
    for index in (0, 3, 7):
        alone = engine.predict(pixels[index : index + 1])
        np.testing.assert_array_equal(alone.probabilities[0], together.probabilities[index])
        np.testing.assert_array_equal(alone.embedding[0], together.embedding[index])


@pytest.mark.parametrize("name", ["litert", "savedmodel"])
def test_four_threads_at_once_get_what_one_gets(name, request):
    engine = request.getfixturevalue(name)
    batches = [images(1 + seed % 8, seed) for seed in range(24)]
    expected = [engine.predict(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(engine.predict, batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.embedding, other.embedding)


@pytest.mark.parametrize("name", ["litert", "savedmodel"])
def test_a_batch_that_is_too_large_or_of_another_size_is_no_answer_but_an_error(name, request):
    engine = request.getfixturevalue(name)
    for pixels in (images(engine.batch_size + 1), np.zeros((2, 31, 32, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"more than the batch|broadcast"):
            engine.predict(pixels)


@pytest.mark.parametrize("name", ["litert", "savedmodel"])
def test_an_engine_opens_no_file_that_has_changed(name, tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    changed = {"litert": "model.tflite", "savedmodel": "variables/variables.index"}
    with open(tmp_path / "bundle" / changed[name], "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=f"{changed[name]} has changed"):
        open_engine(name, open_bundle(str(tmp_path / "bundle")))
    # The other engine's files are untouched.
    (other,) = changed.keys() - {name}
    open_engine(other, open_bundle(str(tmp_path / "bundle")), threads=1)


def test_savedmodel_without_tensorflow_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match="needs TensorFlow: pip install"):
        SavedModelEngine(bundle)


TWO = ModelSpec(
    classes=("Negative", "Positive"),
    positive_class="Positive",
    image_size=32,
    threshold=0.5,
    backbone="small_cnn",
    recipe="small",
    embedding_size=8,
    data_fingerprint="",
)


def decided(spec: ModelSpec, *rows: tuple[float, ...]) -> list[str]:
    return [spec.classes[index] for index in decide(np.array(rows, np.float32), spec)]


@pytest.mark.parametrize("positive", TWO.classes)
def test_with_two_classes_a_tie_is_the_positive_class(positive):
    spec = dataclasses.replace(TWO, positive_class=positive)
    assert decided(spec, (0.5, 0.5), (0.9, 0.1), (0.1, 0.9)) == [positive, "Negative", "Positive"]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9])
def test_the_threshold_decides_and_reaching_it_is_enough(threshold):
    spec = dataclasses.replace(TWO, threshold=threshold)
    at = np.float32(threshold)
    below = np.nextafter(at, np.float32(0))
    assert decided(spec, (1 - at, at), (1 - below, below)) == ["Positive", "Negative"]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, "Positive"), (1.0, "Negative")])
def test_the_ends_of_the_threshold_decide_for_one_class(threshold, expected):
    spec = dataclasses.replace(TWO, threshold=threshold)
    assert decided(spec, (0.999, 0.001), (0.001, 0.999)) == [expected] * 2


def test_the_threshold_is_of_the_positive_class_wherever_it_stands():
    spec = dataclasses.replace(TWO, positive_class="Negative", threshold=0.2)
    assert decided(spec, (0.25, 0.75), (0.15, 0.85)) == ["Negative", "Positive"]


def test_with_three_classes_the_most_probable_wins_and_the_threshold_is_no_matter():
    spec = dataclasses.replace(TWO, classes=("crack", "no crack", "spalling"), positive_class="crack", threshold=0.1)
    rows = ((0.3, 0.3, 0.4), (0.2, 0.5, 0.3), (0.45, 0.45, 0.1), (0.4, 0.35, 0.25))
    assert decided(spec, *rows) == ["spalling", "no crack", "crack", "crack"]


def test_nothing_is_decided_on_no_images():
    assert decide(np.empty((0, 2), np.float32), TWO).tolist() == []


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no engine 'onnx'; the engines are auto, litert, litert-int8, savedmodel"):
        choose_engine("onnx")


@pytest.mark.parametrize("name", ["litert", "litert-int8", "savedmodel"])
def test_an_engine_asked_for_is_taken(name):
    assert choose_engine(name) == name


@pytest.mark.parametrize(
    ("devices", "tensorflow", "expected"),
    [
        (["/dev/nvidia0"], True, "savedmodel"),
        (["/dev/nvidia0"], False, "litert"),
        ([], True, "litert"),
        ([], False, "litert"),
    ],
)
def test_auto_takes_savedmodel_only_with_a_gpu_and_tensorflow(monkeypatch, devices, tensorflow, expected):
    monkeypatch.setattr(engines.glob, "glob", lambda _: devices)
    found = importlib.util.find_spec("json") if tensorflow else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    assert choose_engine("auto") == expected


def test_open_engine_gives_the_kind_that_was_chosen(litert, savedmodel):
    assert isinstance(litert, LiteRtEngine)
    assert isinstance(savedmodel, SavedModelEngine)
    assert isinstance(litert.predict(images(1)), Scores)


def bundle_with(folder, spec: ModelSpec, int8: bool):
    """A bundle of an untrained network, with or without its int8 network."""
    keras.utils.set_random_seed(0)
    backbone = build_backbone("small_cnn", 32, None, trainable=False)
    pixels = np.concatenate([images(8, seed) for seed in range(4)])
    features = np.asarray(backbone(pixels))
    projection = fit_projection(features)
    serving = build_serving(backbone, build_head(features.shape[1], 2, dropout=0.0), projection)
    writer = BundleWriter(str(folder))
    export_model(serving, writer.folder)
    if int8:
        (writer.folder / LITERT_INT8_FILE).write_bytes(convert_to_litert_int8(serving, pixels))
    return writer.finish(dataclasses.replace(spec, embedding_size=projection.matrix.shape[1]), {})


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory):
    return bundle_with(tmp_path_factory.mktemp("int8") / "bundle", TWO, int8=True)


def test_the_int8_engine_says_nearly_what_litert_says_but_runs_another_network(int8_bundle):
    check_engine("litert-int8", int8_bundle)
    int8, exact = (open_engine(name, int8_bundle, threads=2) for name in ("litert-int8", "litert"))
    one, other = int8.predict(images(8, 100)), exact.predict(images(8, 100))
    assert isinstance(one, Scores)
    assert one.probabilities.dtype == one.embedding.dtype == np.float32
    assert one.embedding.shape == other.embedding.shape
    difference = np.abs(one.probabilities - other.probabilities).max()
    assert 0 < difference < 0.02
    np.testing.assert_allclose(one.probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_int8_engine_gives_four_threads_what_it_gives_one_and_each_image_the_same_alone(int8_bundle):
    engine = open_engine("litert-int8", int8_bundle, threads=2)
    batches = [images(1 + seed % 8, seed) for seed in range(12)]
    expected = [engine.predict(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(engine.predict, batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    np.testing.assert_array_equal(engine.predict(batches[7][3:4]).embedding[0], expected[7].embedding[3])


def test_the_int8_network_belongs_to_what_a_bundle_is_and_is_checked(int8_bundle, tmp_path):
    plain = bundle_with(tmp_path / "plain", TWO, int8=False)
    assert plain.spec.fingerprint != int8_bundle.spec.fingerprint
    shutil.copytree(int8_bundle.path, tmp_path / "changed")
    with open(tmp_path / "changed" / LITERT_FILES["litert-int8"], "ab") as stream:
        stream.write(b"\0")
    changed = open_bundle(str(tmp_path / "changed"))
    open_engine("litert", changed, threads=1)
    for function in (check_engine, open_engine):
        with pytest.raises(BundleError, match=r"model_int8\.tflite has changed"):
            function("litert-int8", changed)
        with pytest.raises(BundleError) as caught:
            function("litert-int8", plain)
        assert str(caught.value) == (
            f"the bundle {plain.path} has no int8 network: train it again with this version, or give --engine litert"
        )


@pytest.mark.parametrize("name", ["auto", "litert", "savedmodel"])
def test_an_engine_whose_files_are_there_passes_the_check(name, bundle):
    check_engine(name, bundle)
