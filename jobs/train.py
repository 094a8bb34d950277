"""Train a classifier on prepared images and write a model bundle."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jobs.command import DONE, run_command
from model.recipes import DESCRIPTIONS, RECIPES, recipe_named
from model.spec import STRATEGIES

DESCRIPTION = """\
Train a network on the images that jobs.prepare left, and write a model bundle: a SavedModel, the same network for
LiteRT and Keras, and model.json with classes, metrics and the hash of every file.
"""

EXAMPLES = """\
recipes:
{recipes}

examples:
  python -m jobs.train                                     MobileNetV2 on workspace/data, its weights downloaded
  python -m jobs.train --weights mobilenet_v2.h5           the same offline, weights from a file
  python -m jobs.train --recipe small                      no weights to download, nothing but your images
  python -m jobs.train --strategy mirrored                 on every GPU of this machine
  python -m jobs.train --strategy mirrored --virtual-devices 2
                                                           the same strategy tried out on two halves of the CPU
Follow it with: tensorboard --logdir BUNDLE.unfinished/training/tensorboard
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    recipes = "\n".join(f"  {name:<10} {text}" for name, text in DESCRIPTIONS.items())
    options = argparse.ArgumentParser(
        "python -m jobs.train",
        description=DESCRIPTION,
        epilog=EXAMPLES.format(recipes=recipes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--data", default="workspace/data", metavar="DATA", help="prepared data (%(default)s)")
    options.add_argument("--out", default="workspace/bundle", metavar="BUNDLE", help="the bundle's place (%(default)s)")
    options.add_argument("--recipe", default="frozen", choices=RECIPES, help="what to train (%(default)s)")
    options.add_argument(
        "--weights",
        default=None,
        metavar="imagenet|none|PATH",
        help="start of the backbone: downloaded ImageNet weights, random ones, or a file "
        "(imagenet for the frozen recipe, none for small)",
    )
    options.add_argument(
        "--strategy", default="default", choices=STRATEGIES, help="one device, or every GPU (%(default)s)"
    )
    options.add_argument(
        "--virtual-devices", type=int, default=0, metavar="N", help="split the CPU into N devices to try a strategy"
    )
    options.add_argument("--epochs", type=int, metavar="N", help="passes over the images (the recipe's own)")
    options.add_argument("--batch-size", type=int, metavar="N", help="images per step and replica (the recipe's own)")
    options.add_argument("--seed", type=int, default=0, help="of the weights and the images' order (%(default)s)")
    options.add_argument("--positive-class", metavar="NAME", help="the class that precision and recall speak of")
    options.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    # TensorFlow prints dozens of lines on its build and on missing GPUs before the first word of ours.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from model.training_job import TrainingJob, describe_bundle, run_training

    bundle = run_training(
        TrainingJob(
            data=options.data,
            out=options.out,
            config=recipe_named(options.recipe).with_overrides(
                epochs=options.epochs, batch_size=options.batch_size, seed=options.seed
            ),
            weights=options.weights,
            strategy=options.strategy,
            virtual_devices=options.virtual_devices,
            positive_class=options.positive_class,
            overwrite=options.overwrite,
        )
    )
    print(describe_bundle(bundle))
    test = Path(options.data) / "test"
    print(f"next: python -m jobs.infer --input {test} --model {options.out}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run_command(main))
