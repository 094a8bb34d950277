"""Contenders in turn, round after round; each result is stored as it comes, so that a restart goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.answers import Answers, Comparison, compare, read_answers
from benchmarks.contenders import OURS, RUN, Contender, process_environment
from benchmarks.environments import InstallError, last_line
from benchmarks.images import ImageSet
from benchmarks.process import Measured, run_measured
from benchmarks.task import ANSWERS, Task
from model.errors import InputError
from model.spec import ModelSpec
from pipelines import storage
from pipelines.run import COMMITS, PREDICTIONS, part_path, read_markers

SETTINGS = "settings.json"
REFERENCE = "reference.json"
STORED = "rounds"
LOGS = "logs"
WORK = "work"


@dataclasses.dataclass(frozen=True)
class Result:
    """One contender in one round.

    Attributes:
        contender, round: whose, and which one from 1.
        error: "" or why there are no numbers.
        images: images it classified.
        seconds: of steady work, from the first image read to the last result, the network being loaded.
        whole_seconds: of its process, from start to end.
        peak_process_mb, peak_total_mb: as in :class:`benchmarks.process.Measured`.
        compared, other_class, largest_difference: beside the first contender's answers; see
            :class:`benchmarks.answers.Comparison`.
        load: the machine's load average over a minute before the start.
    """

    contender: str
    round: int
    error: str = ""
    images: int = 0
    seconds: float = 0.0
    whole_seconds: float = 0.0
    peak_process_mb: float = 0.0
    peak_total_mb: float = 0.0
    compared: int = 0
    other_class: int = 0
    largest_difference: float = 0.0
    load: float = 0.0

    @property
    def rate(self) -> float:
        """Images per second of steady work."""
        return self.images / self.seconds


def open_results(out: Path, settings: dict[str, Any]) -> None:
    """Begin a folder of results, or continue one that was begun with the same settings.

    Raises:
        InputError: it was begun with others, or holds other things.
    """
    file = out / SETTINGS
    if file.exists():
        if json.loads(file.read_text()) != settings:
            raise InputError(f"{out} was begun with other images, another bundle or other code: give another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} holds other files: give the benchmark a folder of its own by --out")
    (out / STORED).mkdir(parents=True)
    (out / LOGS).mkdir()
    file.write_text(json.dumps(settings, indent=1) + "\n")


def run_rounds(
    out: Path, rows: Sequence[Contender], rounds: int, images: ImageSet, bundle: str, spec: ModelSpec, timeout: float
) -> list[Result]:
    """Let the contenders take turns; those that failed in a round sit the later ones out.

    Args:
        out: folder of results; see :func:`open_results`.
        rows: the contenders; the first one's answers are the reference.
        rounds: number of rounds.
        images: what to classify.
        bundle: path of the model bundle.
        spec: its description.
        timeout: seconds after which a contender is stopped and counts as failed.
    """
    results: list[Result] = []
    failed: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for place, contender in enumerate(rows):
            step = f"[{(number - 1) * len(rows) + place + 1}/{rounds * len(rows)}] round {number}, {contender.name}: "
            stored = out / STORED / f"{number:02d}-{contender.name}.json"
            result = _stored(stored)
            if result:
                _say(step + _in_words(result) + " (done before)")
            elif contender.name in failed:
                result = Result(contender.name, number, error=failed[contender.name])
            else:
                _say(step + "runs")
                result = _run(out, contender, number, images, bundle, spec, timeout)
                stored.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
                _say(step + _in_words(result))
            if result.error:
                failed[contender.name] = result.error
            results.append(result)
    return results


def _stored(file: Path) -> Result | None:
    """What is stored; a failure is not: it may have been mended."""
    if not file.exists():
        return None
    result = Result(**json.loads(file.read_text()))
    return None if result.error else result


def _run(
    out: Path, contender: Contender, number: int, images: ImageSet, bundle: str, spec: ModelSpec, timeout: float
) -> Result:
    work = out / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    task = Task(images.images, images.shards, bundle, str(work), spec.image_size, images.count, engine=contender.engine)
    log = out / LOGS / f"{number:02d}-{contender.name}.log"
    load = os.getloadavg()[0]
    try:
        command = contender.command(task)
        output = work / "stdout"
        measured = run_measured(command, process_environment(command[0]), work, output, log, timeout)
        if measured.timed_out:
            return Result(contender.name, number, error=f"not finished after {timeout:.0f} s")
        if measured.code:
            return Result(contender.name, number, error=f"exit code {measured.code}: {_why(log)}")
        return _result(out, contender, number, work, measured, spec, load)
    except InstallError as error:
        return Result(contender.name, number, error=f"cannot be installed: {error}")
    except (OSError, ValueError, KeyError, IndexError) as error:
        return Result(contender.name, number, error=f"no usable result: {error!r}"[:200])
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _why(log: Path) -> str:
    """The last line that reads like an exception, else the last line of all."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if line[:1].isalpha() and "Error" in line.split(" ")[0]]
    return last_line("\n".join(errors or lines))


def _result(
    out: Path, contender: Contender, number: int, work: Path, measured: Measured, spec: ModelSpec, load: float
) -> Result:
    if contender.kind == OURS:
        count, seconds = steady_work(str(work / RUN))
        answers = read_answers(work / RUN / PREDICTIONS)
    else:
        line = json.loads(last_line((work / "stdout").read_text()))
        count, seconds = line["images"], line["seconds"]
        answers = read_answers(work / ANSWERS)
    comparison = _against_reference(out / REFERENCE, answers, spec)
    return Result(
        contender=contender.name,
        round=number,
        images=count,
        seconds=round(seconds, 3),
        whole_seconds=round(measured.seconds, 3),
        peak_process_mb=round(measured.peak_process_mb, 1),
        peak_total_mb=round(measured.peak_total_mb, 1),
        compared=comparison.images,
        other_class=comparison.other_class,
        largest_difference=comparison.largest_difference,
        load=round(load, 2),
    )


def _against_reference(file: Path, answers: Answers, spec: ModelSpec) -> Comparison:
    """The first contender that finishes, ours, becomes the reference."""
    if not file.exists():
        file.write_text(json.dumps(answers))
    return compare(json.loads(file.read_text()), answers, spec)


def steady_work(run: str) -> tuple[int, float]:
    """Images of a finished run, and the seconds from its first image read to its last commit marker.

    A unit's first part is written when its images are done, and the marker says how long they took: so the first
    unit's part tells when the first image was read. Writing tables and what Beam does between the units is inside;
    starting Python, loading the network and writing the report are not.
    """
    begins, ends, images = [], [], 0
    for marker in read_markers(run):
        committed = storage.join(run, COMMITS, f"{marker.unit}.json")
        part = storage.join(run, part_path(PREDICTIONS, marker.unit))
        # A unit without predictions has no part.
        done = part if marker.predictions else committed
        begins.append(os.stat(done).st_mtime - marker.seconds)
        ends.append(os.stat(committed).st_mtime)
        images += marker.predictions
    return images, max(ends) - min(begins)


def _in_words(result: Result) -> str:
    if result.error:
        return result.error
    return (
        f"{result.rate:,.0f} images/s, whole command {result.whole_seconds:.1f} s, "
        f"{result.peak_total_mb:,.0f} MiB, {result.other_class} other classes"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
