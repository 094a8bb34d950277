"""The table of recipes, with results that were published beside ours.

The published results are those of five public student projects on the 40,000 images of the METU set; what a project
gives, it gives for its own split and its own machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import cell
from model.bundle import LITERT_FILE, TRAINING_FOLDER, Bundle
from model.errors import InputError
from model.recipes import DESCRIPTIONS
from model.spec import TrainConfig

PUBLISHED: dict[str, str] = {
    "frozen": "accuracy and F1 0.9986",
    "frozen-augmented": "accuracy and F1 0.9979, 1.69 times slower",
    "frozen-160": "99 % train, 95 % validation",
    "early-stopping": "test accuracy 0.9975",
    "two-stage": "curves only",
    "two-stage-10": "stops at 18 of 20",
}
"""A recipe that is not here is our own."""

COLUMNS = (
    "recipe",
    "what it does",
    "published result",
    "test accuracy",
    "F1",
    "errors",
    "seconds",
    "LiteRT, MB",
    "int8 accuracy",
)
NUMBERS_FROM = 3

BEGIN = "<!-- recipes -->"
END = "<!-- /recipes -->"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a recipe.

    Attributes:
        recipe: which one.
        bundle: what it left, or None where it failed.
        error: "" or why there is no bundle.
    """

    recipe: TrainConfig
    bundle: Bundle | None
    error: str = ""


def summary(bundle: Bundle) -> str:
    """A few words on a bundle for a line of progress."""
    test, seconds = bundle.values["metrics"]["test"], bundle.values["training"]["seconds"]
    return f"test accuracy {test['accuracy']:.4f}, F1 {test['f1']:.4f}, trained in {seconds:,.0f} s"


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """The table, and below it what it does not show."""
    rows = [COLUMNS, ("---",) * NUMBERS_FROM + ("---:",) * (len(COLUMNS) - NUMBERS_FROM), *map(_cells, outcomes)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    notes = [*_failures(outcomes), *_augmentation(outcomes), *_epochs(outcomes)]
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def _cells(outcome: Outcome) -> tuple[str, ...]:
    name = outcome.recipe.recipe
    first = (f"`{name}`", cell(DESCRIPTIONS[name]), PUBLISHED.get(name, ""))
    if outcome.bundle is None:
        return (*first, "failed", *[""] * (len(COLUMNS) - NUMBERS_FROM - 1))
    metrics: dict[str, Any] = outcome.bundle.values["metrics"]
    test = metrics["test"]
    int8 = metrics.get("test_int8")
    size = os.path.getsize(os.path.join(outcome.bundle.path, LITERT_FILE))
    return (
        *first,
        f"{test['accuracy']:.4f}",
        f"{test['f1']:.4f}",
        f"{_errors(test['confusion_matrix']):,} of {test['images']:,}",
        f"{outcome.bundle.values['training']['seconds']:,.0f}",
        f"{size / 1e6:.1f}",
        f"{int8['accuracy']:.4f}" if int8 else "",
    )


def _errors(confusion: Sequence[Sequence[int]]) -> int:
    return sum(sum(row) - row[place] for place, row in enumerate(confusion))


def _failures(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.error:
            yield f"`{outcome.recipe.recipe}` failed: {cell(outcome.error)}"


def _augmentation(outcomes: Sequence[Outcome]) -> Iterator[str]:
    bundles = {outcome.recipe.recipe: outcome.bundle for outcome in outcomes}
    plain, augmented = bundles.get("frozen"), bundles.get("frozen-augmented")
    if plain and augmented:
        ours, theirs = (bundle.values["metrics"]["test"] for bundle in (augmented, plain))
        ratio = augmented.values["training"]["seconds"] / plain.values["training"]["seconds"]
        parts = [
            f"{title} {ours[key]:.4f} against {theirs[key]:.4f} ({100 * (ours[key] - theirs[key]):+.2f} points)"
            for title, key in (("accuracy", "accuracy"), ("F1", "f1"))
        ]
        yield f"`frozen-augmented` beside `frozen`: {', '.join(parts)}, {ratio:.2f} times the seconds"


def _epochs(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Of recipes that may stop early: how many epochs ran of those that were planned."""
    for outcome in outcomes:
        stages = outcome.recipe.stages
        if outcome.bundle is None or not any(stage.patience for stage in stages):
            continue
        history = json.loads(Path(outcome.bundle.path, TRAINING_FOLDER, "history.json").read_text())
        planned = sum(stage.epochs for stage in stages)
        parts = [
            f"{stage.name} {sum(epoch['stage'] == stage.name for epoch in history)} of {stage.epochs}"
            for stage in stages
        ]
        shown = f" ({', '.join(parts)})" if len(parts) > 1 else ""
        yield f"`{outcome.recipe.recipe}`: {len(history)} of {planned} epochs ran{shown}"


def check_markers(file: Path, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Make sure that a file has each of the two markers once, in order.

    Raises:
        InputError: it has not, or cannot be read.
    """
    _parts(file, markers)


def put_between_markers(file: Path, table: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace what stands between the markers of a file.

    Raises:
        InputError: the markers are missing, or the file cannot be read.
    """
    before, after = _parts(file, markers)
    file.write_bytes(f"{before}{markers[0]}\n{table}{markers[1]}{after}".encode())


def _parts(file: Path, markers: tuple[str, str]) -> tuple[str, str]:
    begin, end = markers
    try:
        # As bytes: reading as text would make other line ends of those that the file has.
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise InputError(f"{file} needs the lines {begin} and {end}, once each and in this order, for the table")
    return text.partition(begin)[0], text.partition(end)[2]
