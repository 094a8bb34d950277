"""Trainings in turn: nothing cached, features cached, the peer; each result is stored as it comes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import process_environment
from benchmarks.environments import last_line
from benchmarks.process import run_measured
from benchmarks.rounds import LOGS, STORED, WORK
from model.bundle import open_bundle
from model.errors import InputError

COLD = "cold"
WARM = "warm"
PEER = "peer"
CACHE = "_cache"
BUNDLE = "bundle"


@dataclasses.dataclass(frozen=True)
class Side:
    """What is measured; it runs in an empty folder.

    Attributes:
        name: :data:`COLD`, :data:`WARM` or :data:`PEER`.
        command: its command line. Ours leaves a bundle in the folder, the peer prints JSON in its last line.
    """

    name: str
    command: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """One side in one round.

    Attributes:
        side, round: whose, and which one from 1.
        seconds: of its process, from start to end.
        accuracy: on the test split, in [0, 1].
        images: of the test split.
        peak_total_mb: as in :class:`benchmarks.process.Measured`.
        load: the machine's load average over a minute before the start.
        device: what the peer's TensorFlow ran on; "" for ours.
    """

    side: str
    round: int
    seconds: float
    accuracy: float
    images: int
    peak_total_mb: float
    load: float
    device: str = ""


def run_rounds(out: Path, rows: Sequence[Side], rounds: int, data: Path, timeout: float) -> list[Result]:
    """Let the sides take turns; each result is stored as it comes, and one that is stored is not measured again.

    Args:
        out: folder of results; see :func:`benchmarks.rounds.open_results`.
        rows: the sides; cold stands before warm.
        rounds: number of rounds.
        data: folder of prepared data, whose cache is removed or kept.
        timeout: seconds after which a training is stopped.

    Raises:
        InputError: a side failed; what was measured before is kept.
    """
    results = []
    for number in range(1, rounds + 1):
        for place, side in enumerate(rows):
            step = f"[{(number - 1) * len(rows) + place + 1}/{rounds * len(rows)}] round {number}, {side.name}: "
            stored = out / STORED / f"{number:02d}-{side.name}.json"
            before = " (done before)" if stored.exists() else ""
            if not before:
                _set_cache(out, side, number, data / CACHE, timeout)
                _say(step + "runs")
                result = _measure(out, side, number, timeout)
                unfinished = stored.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
                unfinished.replace(stored)
            result = Result(**json.loads(stored.read_text()))
            _say(f"{step}{result.seconds:,.1f} s, test accuracy {result.accuracy:.4f}{before}")
            results.append(result)
    return results


def _set_cache(out: Path, side: Side, number: int, cache: Path, timeout: float) -> None:
    if side.name == COLD:
        shutil.rmtree(cache, ignore_errors=True)
    elif side.name == WARM and not any(cache.glob("*/*")):
        _say(f"round {number}, {side.name}: the cache is gone; a training that is not measured fills it")
        _measure(out, side, number, timeout)


def _measure(out: Path, side: Side, number: int, timeout: float) -> Result:
    work = out / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    log = out / LOGS / f"{number:02d}-{side.name}.log"
    output = work / "stdout"
    load = os.getloadavg()[0]
    try:
        measured = run_measured(side.command, process_environment(side.command[0]), work, output, log, timeout)
        if measured.timed_out:
            raise InputError(f"{side.name} was not finished after {timeout:.0f} s: give a longer --timeout")
        if measured.code:
            why = last_line(log.read_text(errors="replace"))
            raise InputError(f"{side.name} failed with exit code {measured.code}: {why}; see {log}")
        if side.name == PEER:
            answer = json.loads(last_line(output.read_text()))
        else:
            answer = open_bundle(str(work / BUNDLE)).values["metrics"]["test"]
        return Result(
            side=side.name,
            round=number,
            seconds=round(measured.seconds, 3),
            accuracy=answer["accuracy"],
            images=answer["images"],
            peak_total_mb=round(measured.peak_total_mb, 1),
            load=round(load, 2),
            device=answer.get("device", ""),
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
