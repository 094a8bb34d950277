"""Train a classifier on prepared images and write a model bundle."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jobs.command import DONE, run_command
from model.calibration import ThresholdTarget, parse_threshold_target
from model.errors import InputError
from model.recipes import DESCRIPTIONS, RECIPES, recipe_named
from model.spec import STRATEGIES

DESCRIPTION = """\
Train a network on the images that jobs.prepare left, and write a model bundle: a SavedModel, the same network for
LiteRT (float32 and int8) and Keras, model.json with classes, metrics and the hash of every file, and in training/ the
curves, pictures and logs. Probabilities are calibrated and the decision threshold is chosen on the validation split.
"""

EXAMPLES = """\
recipes:
{recipes}

examples:
  python -m jobs.train                                     MobileNetV2 on workspace/data, its weights downloaded
  python -m jobs.train --weights mobilenet_v2.h5           the same offline, weights from a file
  python -m jobs.train --recipe small                      no weights to download, nothing but your images
  python -m jobs.train --backbone EfficientNetV2B0         any network of keras.applications
  python -m jobs.train --threshold-for recall=0.99         miss at most 1 crack in 100, by the validation split
  python -m jobs.train --strategy mirrored                 on every GPU of this machine
  python -m jobs.train --strategy mirrored --virtual-devices 2
                                                           the same strategy tried out on two halves of the CPU
  python -m jobs.train --resume                            go on after an interruption; begin where there is none

Several machines: the same command on each, with --strategy multiworker, TF_CONFIG set, and DATA and BUNDLE on storage
that all of them see. The first worker writes the bundle. After an interruption start all of them with --resume.
The global batch and the learning rate are the recipe's times the number of replicas.

Follow it with: tensorboard --logdir BUNDLE.unfinished/training/tensorboard
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    width = max(map(len, DESCRIPTIONS))
    recipes = "\n".join(f"  {name:<{width}} {text}" for name, text in DESCRIPTIONS.items())
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
        "(imagenet; none for recipes that start from scratch)",
    )
    options.add_argument("--backbone", metavar="NAME", help="a network of keras.applications (the recipe's own)")
    options.add_argument("--image-size", type=int, metavar="N", help="side of the input in pixels (the recipe's own)")
    options.add_argument(
        "--strategy",
        default="default",
        choices=STRATEGIES,
        help="one device, every GPU, or several machines (%(default)s)",
    )
    options.add_argument(
        "--virtual-devices", type=int, default=0, metavar="N", help="split the CPU into N devices to try mirrored"
    )
    options.add_argument(
        "--mixed-precision", action="store_true", help="compute in 16 bits: faster on GPUs, not on CPUs"
    )
    options.add_argument(
        "--epochs", type=int, metavar="N", help="most passes over the images, per stage (the recipe's own)"
    )
    options.add_argument("--batch-size", type=int, metavar="N", help="images per step and replica (the recipe's own)")
    options.add_argument("--seed", type=int, default=0, help="of the weights and the images' order (%(default)s)")
    options.add_argument("--positive-class", metavar="NAME", help="the class that precision and recall speak of")
    options.add_argument(
        "--threshold-for",
        type=_threshold_target,
        default="f1",
        metavar="f1|recall=R|precision=P",
        help="what the decision threshold is chosen for, with two classes (%(default)s)",
    )
    options.add_argument("--deterministic", action="store_true", help="equal trainings give equal weights; slower")
    options.add_argument(
        "--resume", action="store_true", help="go on with an interrupted training; begin where there is none"
    )
    options.add_argument(
        "--overwrite", action="store_true", help="replace a bundle, or an interrupted training, that is there already"
    )
    return options


def _threshold_target(text: str) -> ThresholdTarget:
    try:
        return parse_threshold_target(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
                epochs=options.epochs,
                batch_size=options.batch_size,
                backbone=options.backbone,
                image_size=options.image_size,
                seed=options.seed,
            ),
            weights=options.weights,
            strategy=options.strategy,
            virtual_devices=options.virtual_devices,
            positive_class=options.positive_class,
            threshold_for=options.threshold_for,
            mixed_precision=options.mixed_precision,
            deterministic=options.deterministic,
            resume=options.resume,
            overwrite=options.overwrite,
        )
    )
    if bundle is None:
        print(f"trained beside the first worker, which writes {options.out}")
        return DONE
    print(describe_bundle(bundle))
    test = Path(options.data) / "test"
    print(f"next: python -m jobs.infer --input {test} --model {options.out}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run_command(main))
