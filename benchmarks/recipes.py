"""Train every recipe on its own split and set the results beside those that were published."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.images import choose_images
from benchmarks.recipes_table import Outcome, check_markers, put_between_markers, to_markdown
from benchmarks.recipes_training import Source, train_recipe
from benchmarks.training_data import find_weights, limited_source
from jobs.command import DONE, FAULT, run_command
from model.errors import InputError
from model.recipes import RECIPES, recipe_named
from model.spec import TrainConfig

DESCRIPTION = """\
Prepare the images with each recipe's own split, train the recipe, and write a table of what came out beside what was
published. Recipes of one split share decoded pixels and features, so the first of them takes longer for it. Given
again, the command continues: a recipe whose bundle is whole is not trained again, and one that was cut off goes on. A
recipe that fails is a row that says so; the others are trained all the same.
"""

EXAMPLES = """\
examples:
  python -m benchmarks.recipes --images photos/ --weights mobilenet_v2.h5 --readme README.md
  python -m benchmarks.recipes --images photos/ --weights mobilenet_v2.h5 --recipes frozen,frozen-augmented
  python -m benchmarks.recipes --images photos/ --weights none --limit 200 --epochs 1    a quick try

DIR holds the data in data-..., a bundle and a log per recipe, and the table in recipes.md. A README takes the table
between the lines <!-- recipes --> and <!-- /recipes -->.
Exit code 0: all recipes are trained; 1: one or more failed; 2: an option or the images cannot be used.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        "python -m benchmarks.recipes",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--images", required=True, metavar="DIR", help="folder with a subfolder of images per class")
    options.add_argument(
        "--weights", required=True, metavar="imagenet|none|PATH", help="of the backbones that start from some"
    )
    options.add_argument(
        "--out", default="workspace/recipes", metavar="DIR", help="for data, bundles and the table (%(default)s)"
    )
    options.add_argument(
        "--recipes", default="all", metavar="NAMES", help=f"all, or of {','.join(RECIPES)}; the table is of these"
    )
    options.add_argument("--limit", type=int, metavar="N", help="so many images, spread evenly over all (all)")
    options.add_argument("--epochs", type=int, metavar="N", help="for every stage of every recipe (its own)")
    options.add_argument("--readme", metavar="FILE", help="put the table between the markers of this file")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    if options.limit is not None and options.limit < 2:
        raise InputError("--limit must be 2 or more")
    recipes = chosen_recipes(options.recipes, options.epochs)
    weights = find_weights(options.weights)
    images = Path(options.images).absolute()
    choose_images(images, options.limit)
    readme = Path(options.readme) if options.readme else None
    if readme:
        # Now, not after hours of training.
        check_markers(readme)
    out = Path(options.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    source = Source(limited_source(images, options.limit, out), weights, options.epochs)
    outcomes: list[Outcome] = []
    for place, recipe in enumerate(recipes):
        outcomes.append(train_recipe(recipe, source, out, f"[{place + 1}/{len(recipes)}] {recipe.recipe}: "))
    table = to_markdown(outcomes)
    (out / "recipes.md").write_text(table)
    if readme:
        put_between_markers(readme, table)
    else:
        print(table)
    print(f"written: {out}/recipes.md{f', {readme}' if readme else ''}", file=sys.stderr)
    return FAULT if any(outcome.error for outcome in outcomes) else DONE


def chosen_recipes(names: str, epochs: int | None = None) -> Sequence[TrainConfig]:
    """Recipes by names with commas between, or all of them; with another number of epochs where one is given.

    Raises:
        InputError: a name is unknown.
    """
    chosen = RECIPES if names == "all" else [name.strip() for name in names.split(",")]
    return [recipe_named(name).with_overrides(epochs=epochs) for name in chosen]


if __name__ == "__main__":
    raise SystemExit(run_command(main, continues=True))
