"""The named recipes."""

from __future__ import annotations

import pytest

from model.augmentation import AUGMENTATIONS
from model.errors import InputError
from model.recipes import DESCRIPTIONS, RECIPES, recipe_named


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_by_its_own_name_and_is_described(name):
    assert recipe_named(name).recipe == name
    assert RECIPES.keys() == DESCRIPTIONS.keys()


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no recipe 'tiny'; the recipes are frozen, frozen-augmented, "):
        recipe_named("tiny")


def test_the_frozen_recipe_changes_no_images():
    # Its features are computed once per image: there is nothing that could be augmented.
    (stage,) = recipe_named("frozen").stages
    assert (stage.frozen, stage.augmentation) == (True, None)


@pytest.mark.parametrize("name", RECIPES)
def test_every_augmentation_of_a_recipe_is_there(name):
    for stage in RECIPES[name].stages:
        assert stage.augmentation is None or stage.augmentation in AUGMENTATIONS


@pytest.mark.parametrize("name", RECIPES)
def test_stages_are_told_apart_by_name(name):
    # The history and the checkpoint know a stage by its name.
    names = [stage.name for stage in RECIPES[name].stages]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "split", "seed", "epochs"),
    [
        ("frozen", (60, 20, 20), 0, [5]),
        ("frozen-augmented", (60, 20, 20), 0, [5]),
        ("frozen-160", (70, 24, 6), 0, [10]),
        ("early-stopping", (70, 20, 10), 1337, [5]),
        ("two-stage-10", (60, 20, 20), 0, [10, 10]),
    ],
)
def test_published_recipes_have_their_published_numbers(name, split, seed, epochs):
    recipe = recipe_named(name)
    assert (recipe.split, recipe.split_seed, recipe.image_size) == (split, seed, 160)
    assert [stage.epochs for stage in recipe.stages] == epochs
