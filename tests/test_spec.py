"""Descriptions of models and trainings: what is refused, and that fingerprints stay what they are."""

from __future__ import annotations

import dataclasses
import json

import pytest

from model.errors import InputError
from model.recipes import RECIPES
from model.spec import ModelSpec, canonical_json, choose_positive_class, fingerprint

SPEC = ModelSpec(
    classes=("no crack", "crack"),
    positive_class="crack",
    image_size=32,
    threshold=0.5,
    backbone="small_cnn",
    recipe="small",
    embedding_size=8,
    data_fingerprint="ab12",
)


def test_a_fingerprint_is_the_same_for_ever():
    # Stored bundles and data carry these numbers: whoever changes them makes every stored one invalid.
    text = '{"a":"Riß","b":[1,2.5,null]}'
    assert canonical_json({"b": [1, 2.5, None], "a": "Riß"}) == text
    assert (
        fingerprint({"b": [1, 2.5, None], "a": "Riß"})
        == "5d7f33ad4ac68373853a24aa08bf24f9d7eda80a47f0d617af904dd3b2bbaffd"
    )


def test_a_fingerprint_knows_values_and_not_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint(("x", "y")) == fingerprint(["x", "y"])
    assert fingerprint(["x", "y"]) != fingerprint(["y", "x"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ("crack",)}, "two or more distinct classes"),
        ({"classes": ()}, "two or more distinct classes"),
        ({"classes": ("crack", "crack")}, "two or more distinct classes"),
        ({"positive_class": "Crack"}, "'Crack' is none of"),
        ({"threshold": -0.01}, "threshold -0.01 is not in"),
        ({"threshold": 1.01}, "threshold 1.01 is not in"),
        ({"threshold": float("nan")}, "threshold nan is not in"),
    ],
)
def test_a_spec_refuses_what_no_model_can_be(values, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SPEC, **values)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_spec_takes_thresholds_at_the_ends(threshold):
    assert dataclasses.replace(SPEC, threshold=threshold).threshold == threshold


def test_a_spec_comes_back_from_json_as_it_went():
    spec = dataclasses.replace(SPEC, fingerprint="cd34")
    text = json.dumps({**dataclasses.asdict(spec), "metrics": {"accuracy": 1.0}})
    assert ModelSpec.from_json(json.loads(text)) == spec


def test_only_the_fingerprint_may_be_missing_in_json():
    values = dataclasses.asdict(SPEC)
    del values["fingerprint"]
    assert ModelSpec.from_json(values) == SPEC
    for name in values:
        with pytest.raises(KeyError, match=name):
            ModelSpec.from_json({key: value for key, value in values.items() if key != name})


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("Negative", "Positive"), "Positive"),
        (("Positive", "Without"), "Positive"),
        (("CRACKED", "sound"), "CRACKED"),
        (("crack", "no crack", "spalling"), "crack"),
        (("crack", "positive"), "positive"),
        (("apple", "pear"), "pear"),
    ],
)
def test_the_positive_class_is_the_one_named_like_a_defect_else_the_last(classes, expected):
    assert choose_positive_class(classes) == expected


def test_the_positive_class_asked_for_goes_first_and_must_be_there():
    assert choose_positive_class(("Negative", "Positive"), "Negative") == "Negative"
    with pytest.raises(InputError, match="'negative' is none of the classes: Negative, Positive"):
        choose_positive_class(("Negative", "Positive"), "negative")


def test_overrides_that_are_none_change_nothing():
    config = RECIPES["small"]
    assert config.with_overrides(epochs=None, batch_size=None) == config
    changed = config.with_overrides(epochs=None, batch_size=5, seed=7)
    assert changed == dataclasses.replace(config, batch_size=5, seed=7)
    assert RECIPES["small"] == config


def test_epochs_are_overridden_in_every_stage():
    config = RECIPES["two-stage-10"]
    changed = config.with_overrides(epochs=3)
    assert [stage.epochs for stage in changed.stages] == [3, 3]
    assert [dataclasses.replace(stage, epochs=10) for stage in changed.stages] == list(config.stages)
    assert [RECIPES[name].from_scratch for name in ("two-stage-10", "small")] == [False, True]


@pytest.mark.parametrize("values", [{"epochs": 0}, {"batch_size": 0}, {"epochs": -1}])
def test_overrides_that_cannot_be_trained_with_are_refused(values):
    with pytest.raises(InputError, match="--epochs and --batch-size must be 1 or more"):
        RECIPES["small"].with_overrides(**values)
