"""The named recipes."""

from __future__ import annotations

import pytest

from model.errors import InputError
from model.recipes import DESCRIPTIONS, RECIPES, recipe_named


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_by_its_own_name_and_is_described(name):
    assert recipe_named(name).recipe == name
    assert RECIPES.keys() == DESCRIPTIONS.keys()


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no recipe 'tiny'; the recipes are frozen, small"):
        recipe_named("tiny")


def test_the_frozen_recipe_changes_no_images():
    # Its features are computed once per image: there is nothing that could be augmented.
    frozen = recipe_named("frozen")
    assert (frozen.frozen, frozen.augmented) == (True, False)


@pytest.mark.parametrize("name", RECIPES)
def test_descriptions_name_the_recipes_image_size(name):
    size = RECIPES[name].image_size
    assert f"{size} x {size}" in DESCRIPTIONS[name]
