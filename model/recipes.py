"""The named trainings. A recipe is data, not code."""

from __future__ import annotations

from model.errors import InputError
from model.spec import TrainConfig

RECIPES: dict[str, TrainConfig] = {
    recipe.recipe: recipe
    for recipe in (
        TrainConfig(
            recipe="frozen",
            backbone="MobileNetV2",
            image_size=160,
            split=(60, 20, 20),
            batch_size=32,
            epochs=5,
            learning_rate=1e-3,
            dropout=0.0,
            frozen=True,
            augmented=False,
            cosine=False,
        ),
        TrainConfig(
            recipe="small",
            backbone="small_cnn",
            image_size=96,
            split=(60, 20, 20),
            batch_size=32,
            epochs=12,
            learning_rate=3e-3,
            dropout=0.2,
            frozen=False,
            augmented=True,
            cosine=True,
        ),
    )
}

DESCRIPTIONS: dict[str, str] = {
    "frozen": "MobileNetV2 at 160 x 160 with a frozen backbone; needs --weights imagenet or a file",
    "small": "a small network from scratch at 96 x 96; needs no weights",
}


def recipe_named(name: str) -> TrainConfig:
    """The recipe of a name.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]
