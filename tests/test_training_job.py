"""A whole training as a job: what the bundle says of itself, and that nothing half stays behind."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from model import export, training
from model.bundle import open_bundle
from model.dataset_info import read_dataset
from model.errors import InputError
from model.recipes import recipe_named
from model.training_job import TrainingJob, describe_bundle, run_training, split_warning

CONFIG = recipe_named("small").with_overrides(image_size=32, epochs=1)


def job(data, out, **values):
    return TrainingJob(**{"data": str(data), "out": str(out), "config": CONFIG, **values})


def test_the_bundle_is_whole_and_says_what_made_it(tiny_bundle, tiny_data):
    bundle = open_bundle(str(tiny_bundle))
    info = read_dataset(str(tiny_data))
    for name in bundle.values["files"]:
        bundle.verified(name)
    assert {"saved_model.pb", "model.tflite", "model.keras", "reference.json"} <= bundle.values["files"].keys()
    assert {
        *("training/history.json", "training/evaluation.json", "training/classification_report.txt"),
        "training/confusion_matrix.png",
    } <= bundle.values["files"].keys()
    assert any(name.startswith("training/tensorboard/") for name in bundle.values["files"])
    assert bundle.spec.data_fingerprint == info.fingerprint
    assert bundle.values["data"]["counts"] == info.counts
    assert bundle.values["data"]["source"] == "synthetic:120"
    assert bundle.values["training"]["epochs"] == 8
    assert bundle.values["training"]["weights"] == "none"
    assert (bundle.values["training"]["strategy"], bundle.values["training"]["replicas"]) == ("default", 1)
    assert {"tensorflow", "keras", "numpy", "pillow"} <= bundle.values["versions"].keys()
    assert bundle.values["metrics"].keys() == {"before", "validation", "test"}
    assert bundle.values["metrics"] == json.loads((tiny_bundle / "training/evaluation.json").read_text())
    assert len(json.loads((tiny_bundle / "training/history.json").read_text())["val_loss"]) == 8
    assert (tiny_bundle / "training/confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_but_data_and_bundle_is_left(tiny_bundle):
    assert sorted(path.name for path in tiny_bundle.parent.iterdir()) == ["bundle", "data"]


def test_a_bundle_is_described_with_its_metrics(tiny_bundle):
    bundle = open_bundle(str(tiny_bundle))
    lines = describe_bundle(bundle).splitlines()
    assert lines[0] == f"bundle {tiny_bundle}: small_cnn, classes Negative, Positive"
    assert [line.split("accuracy")[0].strip() for line in lines[1:4]] == [
        "before training (validation)",
        "validation",
        "test",
    ]
    for line, name in zip(lines[1:4], ("before", "validation", "test"), strict=True):
        values = bundle.values["metrics"][name]
        assert f"accuracy {values['accuracy']:.4f}  f1 {values['f1']:.4f}  loss {values['loss']:.4f}" in line
        assert f"({values['images']} images)" in line
    assert lines[4].endswith("f1 is of 'Positive'")


@pytest.mark.parametrize(
    ("split", "warned"),
    [((0.6, 0.2, 0.2), False), ((0.8, 0.1, 0.1), True), ((0.2, 0.6, 0.2), True), ((0.6, 0.3, 0.1), True)],
)
def test_another_split_than_the_recipes_is_pointed_out(tiny_data, split, warned):
    info = dataclasses.replace(read_dataset(str(tiny_data)), split=split)
    warning = split_warning(CONFIG, info)
    if warned:
        shown = "/".join(f"{100 * part:g}" for part in split)
        assert warning == f"warning: recipe small was published with the split 60/20/20, the data has {shown}"
    else:
        assert warning is None


def test_parts_of_any_sum_are_the_same_split(tiny_data):
    info = read_dataset(str(tiny_data))
    assert split_warning(dataclasses.replace(CONFIG, split=(3, 1, 1)), info) is None
    thirds = dataclasses.replace(info, split=(1 / 3, 1 / 3, 1 / 3))
    assert split_warning(dataclasses.replace(CONFIG, split=(1, 1, 1)), thirds) is None


def test_an_empty_split_is_refused_and_nothing_is_left(tiny_data, tmp_path):
    values = json.loads((tiny_data / "dataset.json").read_text())
    values["counts"]["test"] = dict.fromkeys(values["classes"], 0)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"the test split of .* is empty"):
        run_training(job(tmp_path / "data", tmp_path / "bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


class Broken(BaseException):
    """As a signal or a crash: no Exception."""


@pytest.mark.parametrize("module", [training, export])
@pytest.mark.parametrize("error", [InputError, Broken, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_neither_bundle_nor_unfinished_folder(
    monkeypatch, tiny_data, tmp_path, module, error
):
    written = []

    def fail(*arguments):
        (folder,) = tmp_path.iterdir()
        written.append(folder.name)
        (folder / "saved_model.pb").write_text("half")
        raise error("in the middle")

    monkeypatch.setattr(training, "train", (lambda *_: Trained()) if module is export else fail)
    monkeypatch.setattr(export, "export_model", fail)
    with pytest.raises(error, match="in the middle"):
        run_training(job(tiny_data, tmp_path / "bundle"))
    assert written == ["bundle.unfinished"]
    assert list(tmp_path.iterdir()) == []


class Trained:
    serving = None


def test_a_failed_training_leaves_the_old_bundle_as_it_was(monkeypatch, tiny_data, tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.setattr(training, "train", lambda *_: Trained())

    def fail(*_):
        raise InputError("in the middle")

    monkeypatch.setattr(export, "export_model", fail)
    with pytest.raises(InputError, match="in the middle"):
        run_training(job(tiny_data, tmp_path / "bundle", overwrite=True))
    bundle = open_bundle(str(tmp_path / "bundle"))
    for name in bundle.values["files"]:
        bundle.verified(name)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positive_class": "spalling"}, "--positive-class 'spalling' is none of the classes: Negative, Positive"),
        ({"weights": "imagenet"}, "trained from scratch: use --weights none"),
        ({"weights": "/no/such/weights.h5"}, "trained from scratch: use --weights none"),
        (
            {"weights": "/no/such/weights.h5", "config": recipe_named("frozen").with_overrides(image_size=32)},
            "there is no weights file /no/such/weights.h5",
        ),
        ({"strategy": "tpu"}, "no strategy 'tpu'"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_left(tiny_data, tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        run_training(job(tiny_data, tmp_path / "bundle", **values))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_refused_before_anything_is_read(tiny_bundle, tiny_data):
    with pytest.raises(InputError, match="holds a model bundle already: give --overwrite"):
        run_training(job(tiny_data, tiny_bundle))


def test_data_that_is_not_prepared_is_refused_with_what_to_run(tmp_path):
    with pytest.raises(InputError, match=r"no prepared data at .*: run python -m jobs\.prepare first"):
        run_training(job(tmp_path / "data", tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []
