"""One recipe: its data prepared, its bundle trained, or found whole."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.environments import last_line
from benchmarks.images import REPOSITORY
from benchmarks.recipes_table import Outcome, summary
from benchmarks.training_data import prepare_data
from model.bundle import MODEL_FILE, Bundle, open_bundle
from model.dataset_info import DatasetInfo
from model.errors import BundleError, CrackscanError
from model.spec import TrainConfig

FROM_SCRATCH = "small_cnn"
"""The backbone that there are no weights for."""

SECONDS_TO_STOP = 60.0


@dataclasses.dataclass(frozen=True)
class Source:
    """What all recipes are trained with.

    Attributes:
        images: folder with a subfolder of images per class.
        weights: ``imagenet``, ``none``, or the absolute path of a file.
        epochs: of every stage, or None for the recipes' own.
    """

    images: Path
    weights: str
    epochs: int | None = None


def train_recipe(recipe: TrainConfig, source: Source, out: Path, step: str) -> Outcome:
    """Train a recipe unless its bundle is whole; a failure becomes part of the outcome.

    Args:
        recipe: what to train.
        source: on what.
        out: folder of the bundles; the data goes there too, once for each split.
        step: what the lines on stderr begin with.
    """
    bundle, log = out / recipe.recipe, out / f"{recipe.recipe}.log"
    try:
        info = prepare_data(source.images, data_folder(out, recipe), recipe)
        weights = None if recipe.backbone == FROM_SCRATCH else source.weights
        found = whole_bundle(bundle, recipe, info, weights)
        if found:
            _say(f"{step}{summary(found)} (done before)")
            return Outcome(recipe, found)
        _say(f"{step}trains; it says how far it is in {log}")
        command = training_command(recipe, Path(info.data), bundle, weights, source.epochs)
        started = time.monotonic()
        code = _run(command, log)
        if code:
            error = f"exit code {code}: {last_line(log.read_text(errors='replace'))}"
        else:
            found = whole_bundle(bundle, recipe, info, weights)
            error = "" if found else f"jobs.train left no bundle of this recipe at {bundle}"
    except (CrackscanError, OSError) as failure:
        found, error = None, str(failure)
    if not found or error:
        _say(f"{step}failed: {error}")
        return Outcome(recipe, None, error)
    _say(f"{step}{summary(found)}, whole command {time.monotonic() - started:,.0f} s")
    return Outcome(recipe, found)


def data_folder(out: Path, recipe: TrainConfig) -> Path:
    """Where data of a recipe's split lies; recipes of the same split share it."""
    split = "-".join(f"{part:g}" for part in recipe.split)
    return out / f"data-{split}-seed-{recipe.split_seed}"


def training_command(
    recipe: TrainConfig, data: Path, bundle: Path, weights: str | None, epochs: int | None
) -> list[str]:
    """The command line of a training that begins, or goes on where it was cut off."""
    command = [sys.executable, "-m", "jobs.train", "--recipe", recipe.recipe, "--data", str(data)]
    command += ["--out", str(bundle), "--seed", str(recipe.seed), "--resume"]
    if weights is not None:
        command += ["--weights", weights]
    if epochs is not None:
        command += ["--epochs", str(epochs)]
    if (bundle / MODEL_FILE).exists():
        command.append("--overwrite")
    return command


def whole_bundle(path: Path, recipe: TrainConfig, info: DatasetInfo, weights: str | None) -> Bundle | None:
    """The bundle in a folder, if there is one of this very recipe, data and weights; else None."""
    try:
        bundle = open_bundle(str(path))
    except BundleError:
        return None
    training = bundle.values["training"]
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe))) | {"weights": os.path.basename(weights or "none")}
    if bundle.spec.data_fingerprint != info.fingerprint:
        return None
    return bundle if all(training.get(name) == value for name, value in wanted.items()) else None


def _run(command: list[str], log: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (
        open(log, "ab") as stream,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
