"""The named trainings. A recipe is data, not code."""

from __future__ import annotations

from model.errors import InputError
from model.spec import Stage, TrainConfig

RECIPES: dict[str, TrainConfig] = {
    recipe.recipe: recipe
    for recipe in (
        TrainConfig(
            recipe="frozen",
            backbone="MobileNetV2",
            image_size=160,
            split=(60, 20, 20),
            batch_size=32,
            stages=(Stage("head", epochs=5, learning_rate=1e-3, frozen=True),),
        ),
        TrainConfig(
            recipe="frozen-augmented",
            backbone="MobileNetV2",
            image_size=160,
            split=(60, 20, 20),
            batch_size=32,
            stages=(Stage("head", epochs=5, learning_rate=1e-3, frozen=True, augmentation="flips-rotation"),),
        ),
        TrainConfig(
            recipe="frozen-160",
            backbone="MobileNetV2",
            image_size=160,
            split=(70, 24, 6),
            batch_size=16,
            stages=(Stage("head", epochs=10, learning_rate=1e-3, frozen=True),),
        ),
        TrainConfig(
            recipe="early-stopping",
            backbone="MobileNetV2",
            image_size=160,
            split=(70, 20, 10),
            split_seed=1337,
            batch_size=32,
            dropout=0.3,
            stages=(
                Stage(
                    "head",
                    epochs=5,
                    learning_rate=1e-4,
                    frozen=True,
                    augmentation="horizontal-flip-rotation",
                    patience=5,
                ),
            ),
        ),
        TrainConfig(
            recipe="two-stage",
            backbone="MobileNetV2",
            image_size=160,
            split=(60, 20, 20),
            batch_size=32,
            dropout=0.2,
            stages=(
                Stage("head", epochs=5, learning_rate=1e-3, frozen=True, patience=2),
                Stage("fine-tuning", epochs=3, learning_rate=1e-5, frozen=False, patience=2),
            ),
        ),
        TrainConfig(
            recipe="two-stage-10",
            backbone="MobileNetV2",
            image_size=160,
            split=(60, 20, 20),
            batch_size=32,
            dropout=0.2,
            stages=(
                Stage("head", epochs=10, learning_rate=1e-4, frozen=True, patience=3),
                Stage("fine-tuning", epochs=10, learning_rate=1e-5, frozen=False, fine_tune_from=100, patience=3),
            ),
        ),
        TrainConfig(
            recipe="small",
            backbone="small_cnn",
            image_size=96,
            split=(60, 20, 20),
            batch_size=32,
            dropout=0.2,
            stages=(Stage("network", epochs=12, learning_rate=3e-3, frozen=False, augmentation="light", cosine=True),),
        ),
        TrainConfig(
            recipe="best",
            backbone="MobileNetV2",
            image_size=160,
            split=(60, 20, 20),
            batch_size=32,
            dropout=0.2,
            label_smoothing=0.05,
            stages=(
                Stage("head", epochs=5, learning_rate=1e-3, frozen=True),
                Stage(
                    "fine-tuning",
                    epochs=8,
                    learning_rate=3e-4,
                    frozen=False,
                    # block_3_expand: what lies below are edges and colours, which cost half of the time to train.
                    fine_tune_from=27,
                    augmentation="strong",
                    cosine=True,
                    averaging=0.995,
                ),
            ),
        ),
    )
}

DESCRIPTIONS: dict[str, str] = {
    "frozen": "MobileNetV2 with a frozen backbone, 5 epochs; features computed once",
    "frozen-augmented": "the same with random flips and rotations",
    "frozen-160": "frozen, batch 16, 10 epochs, split 70/24/6",
    "early-stopping": "frozen, flip, rotation, dropout 0.3, Adam 1e-4, best of 5 epochs, split 70/20/10",
    "two-stage": "frozen, then the whole backbone fine-tuned, early stopping",
    "two-stage-10": "10 + 10 epochs, dropout, early stopping, the upper third of the backbone fine-tuned",
    "small": "a small network from scratch at 96 x 96; needs no weights",
    "best": "fine-tuned with strong augmentation, for surfaces and light that it has not seen",
}


def recipe_named(name: str) -> TrainConfig:
    """The recipe of a name.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]
