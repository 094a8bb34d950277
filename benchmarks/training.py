"""Measure crackscan's training with a frozen backbone against the plain Keras script, in one run on the same images."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.images import choose_images, read_once
from benchmarks.inference import code_digest, describe_machine
from benchmarks.rounds import open_results
from benchmarks.training_data import find_weights, images_digest, limited_source, prepare_data, write_image_folders
from benchmarks.training_rounds import BUNDLE, COLD, PEER, WARM, Result, Side, run_rounds
from jobs.command import DONE, run_command
from model.bundle import sha256_of_file
from model.errors import InputError
from model.recipes import recipe_named
from model.spec import TrainConfig

RECIPE = "frozen"

TITLES = {
    COLD: "crackscan, nothing cached",
    WARM: "crackscan, features cached",
    PEER: "Keras image_dataset_from_directory + fit",
}
TARGETS = {COLD: 4.0, WARM: 8.0}
"""How many times shorter than the peer a side shall be."""

TARGET_POINTS = 0.1
"""How far a side's test accuracy may lie from the peer's, in percentage points."""

COLUMNS = (
    "",
    "seconds",
    "lowest to highest",
    "shorter than the peer by",
    "target",
    "test accuracy",
    "beside the peer, points",
    "target",
    "peak MiB, all processes",
)

NOTES = """\
*seconds*: a whole command, from the start of Python to the end of the process; medians over the rounds, and of the
ratios within a round. crackscan: `python -m jobs.train`, from JPEG shards to the evaluated bundle (SavedModel, LiteRT,
Keras file, metrics, figures). *nothing cached*: `DATA/_cache` was removed before; *features cached*: it holds what the
run before left. The peer: `benchmarks/training_peer.py`, from JPEG files to the evaluated network and its SavedModel.
Writing the shards and the folders of files is counted on neither side; both hold the same bytes in the same splits."""

DESCRIPTION = """\
Train the frozen recipe with crackscan, first with nothing cached and then with its features cached, and with the plain
Keras script that keras.io teaches, on the same splits of the same images; each a process of its own, in turn. Writes
seconds, ratios and test accuracies to DIR/training.md and DIR/training.json. Given again, the command continues: what
was measured is not measured again.
"""

EXAMPLES = """\
examples:
  python -m benchmarks.training --images photos/ --weights mobilenet_v2.h5
  python -m benchmarks.training --images photos/ --weights mobilenet_v2.h5 --out workspace/training --rounds 3
  python -m benchmarks.training --images photos/ --weights none --limit 200 --epochs 1    a quick try
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        "python -m benchmarks.training",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--images", required=True, metavar="DIR", help="folder with a subfolder of images per class")
    options.add_argument("--weights", required=True, metavar="imagenet|none|PATH", help="of the backbone, for both")
    options.add_argument(
        "--out", default="workspace/benchmark-training", metavar="DIR", help="for results and data (%(default)s)"
    )
    options.add_argument("--rounds", type=int, default=1, metavar="N", help="(%(default)s)")
    options.add_argument("--limit", type=int, metavar="N", help="so many images, spread evenly over all (all)")
    options.add_argument("--epochs", type=int, metavar="N", help="for both (the recipe's own)")
    options.add_argument(
        "--timeout", type=float, default=14400.0, metavar="S", help="the longest for one training (%(default)s s)"
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    if options.rounds < 1 or (options.limit is not None and options.limit < 2):
        raise InputError("--rounds must be 1 or more, --limit 2 or more")
    recipe = recipe_named(RECIPE).with_overrides(epochs=options.epochs)
    weights = find_weights(options.weights)
    images = Path(options.images).absolute()
    chosen = choose_images(images, options.limit)
    out = Path(options.out).absolute()
    settings = {
        "images": images_digest(images, chosen),
        "weights": sha256_of_file(weights) if os.path.isabs(weights) else weights,
        "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
        "code": code_digest(),
    }
    open_results(out, settings)
    print(f"preparing {len(chosen):,} images in {out}: not measured", file=sys.stderr, flush=True)
    data, files = out / "data", out / "files"
    write_image_folders(prepare_data(limited_source(images, options.limit, out), data, recipe), files)
    read_once([str(data), str(files)])
    rows = sides(recipe, data, files, weights, options.epochs)
    results = run_rounds(out, rows, options.rounds, data, options.timeout)
    summaries = summarise(results)
    machine = describe_machine()
    values = {
        "settings": settings,
        "machine": machine,
        "images": len(chosen),
        "sides": summaries,
        "rounds": [dataclasses.asdict(result) for result in results],
    }
    (out / "training.json").write_text(json.dumps(values, indent=1) + "\n")
    page = to_markdown(summaries, _facts(recipe, len(chosen), options.rounds, machine, results))
    (out / "training.md").write_text(page)
    print(page)
    print(f"written: {out}/training.json, training.md", file=sys.stderr)
    return DONE


def sides(recipe: TrainConfig, data: Path, files: Path, weights: str, epochs: int | None) -> list[Side]:
    """The three sides in the order in which they take turns.

    Args:
        recipe: what both train; it has one stage, with a frozen backbone.
        data: folder of prepared shards.
        files: folder of the same splits as image files.
        weights: ``imagenet``, ``none``, or an absolute path.
        epochs: to train for other than the recipe's own, or None.
    """
    ours = [sys.executable, "-m", "jobs.train", "--recipe", recipe.recipe, "--data", str(data)]
    ours += ["--weights", weights, "--out", BUNDLE]
    if epochs is not None:
        ours += ["--epochs", str(epochs)]
    stage = recipe.stages[0]
    peer = [sys.executable, "-m", "benchmarks.training_peer", "--images", str(files), "--weights", weights]
    peer += ["--out", ".", "--image-size", str(recipe.image_size), "--batch-size", str(recipe.batch_size)]
    peer += ["--epochs", str(stage.epochs), "--learning-rate", str(stage.learning_rate), "--seed", str(recipe.seed)]
    return [Side(COLD, tuple(ours)), Side(WARM, tuple(ours)), Side(PEER, tuple(peer))]


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One mapping per side: medians over the rounds; ratio and difference to the peer are of the same round."""
    of_peer = {result.round: result for result in results if result.side == PEER}
    summaries = []
    for name, title in TITLES.items():
        own = [result for result in results if result.side == name]
        ratios = [of_peer[result.round].seconds / result.seconds for result in own]
        points = [100 * (result.accuracy - of_peer[result.round].accuracy) for result in own]
        summaries.append(
            {
                "name": name,
                "title": title,
                "rounds": len(own),
                "seconds": statistics.median(result.seconds for result in own),
                "lowest": min(result.seconds for result in own),
                "highest": max(result.seconds for result in own),
                "shorter_by": statistics.median(ratios),
                "accuracy": statistics.median(result.accuracy for result in own),
                "points": statistics.median(points),
                "images": own[0].images,
                "peak_total_mb": max(result.peak_total_mb for result in own),
            }
        )
    return summaries


def to_markdown(summaries: Sequence[Mapping[str, Any]], facts: Sequence[str]) -> str:
    """The page: facts, the table, and what the columns mean."""
    lines = ["# Training: crackscan and the plain Keras script", "", *(f"- {fact}" for fact in facts), ""]
    for cells in (COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *map(_cells, summaries)):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", NOTES]) + "\n"


def _cells(summary: Mapping[str, Any]) -> list[str]:
    measured = summary["name"] in TARGETS
    target = TARGETS.get(summary["name"], 0.0)
    # Differences of accuracies are sums of rounded fractions: a tenth of a point must not miss by the last bit.
    near = abs(summary["points"]) <= TARGET_POINTS + 1e-9
    return [
        summary["title"],
        f"{summary['seconds']:,.1f}",
        f"{summary['lowest']:,.1f} to {summary['highest']:,.1f}",
        f"{summary['shorter_by']:.2f} x" if measured else "",
        f"{target:g} x: {_verdict(summary['shorter_by'] >= target)}" if measured else "",
        f"{summary['accuracy']:.4f}",
        f"{summary['points']:+.2f}" if measured else "",
        f"within {TARGET_POINTS:g}: {_verdict(near)}" if measured else "",
        f"{summary['peak_total_mb']:,.0f}",
    ]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def _facts(
    recipe: TrainConfig, images: int, rounds: int, machine: Mapping[str, Any], results: Sequence[Result]
) -> list[str]:
    epochs = recipe.stages[0].epochs
    work = f"{recipe.backbone} at {recipe.image_size} x {recipe.image_size}, batch {recipe.batch_size}"
    loads = [result.load for result in results]
    devices = ", ".join(sorted({result.device for result in results if result.side == PEER}))
    cores = f"{machine['cores']} cores: {machine['processor']}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        f"{images:,} images, of these {results[0].images:,} in the test split",
        f"{work}, {epochs} epoch{'s' if epochs > 1 else ''}",
        f"{rounds} round{'s' if rounds > 1 else ''} in turn, all files in the page cache",
        f"device {devices}; {cores}; load before the runs {min(loads):.1f} to {max(loads):.1f}",
        f"Python {machine['python']}, {versions}",
    ]


if __name__ == "__main__":
    raise SystemExit(run_command(main, continues=True))
