"""Measure how jobs.infer holds on long inputs and on many tiny shards: memory, time, start."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.contenders import process_environment
from benchmarks.environments import last_line
from benchmarks.images import ImageSet, image_set, read_once
from benchmarks.inference import code_digest, describe_machine
from benchmarks.process import run_measured
from benchmarks.recipes_table import check_markers, put_between_markers
from benchmarks.rounds import STORED, open_results, steady_work
from jobs.command import DONE, run_command
from model.bundle import open_bundle
from model.errors import InputError, RunError
from pipelines import storage, tfrecord
from pipelines.run import PREDICTIONS, committed_units, part_path

REPEATS = 10
TINY_SHARDS = 10_000
IMAGES_PER_TINY_SHARD = 2
TINY_IMAGES_SHARDS = 80
START_ROUNDS = 5
INPUTS = "inputs"
BYTECODE = "bytecode"
TIMEOUT = 3600.0
MARKERS = ("<!-- scaling -->", "<!-- /scaling -->")

DESCRIPTION = """\
Run jobs.infer, each time in a process of its own, on an input, on the same input ten times over (hard links), on
20,000 of its images in 10,000 shards and in 80, and on eight images; print peak memory and times as ratios, beside what
they are to be. Given again, the command continues: what was measured is not measured again.
"""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One run of jobs.infer.

    Attributes:
        name, round: of what, and which one from 1.
        images, units: of the run.
        whole_seconds: of the process, from start to end.
        cpu_seconds: its processor time, which other work on the machine hardly changes.
        steady_seconds: from the first image read to the last commit marker.
        first_seconds: from the start of the process to the first part.
        peak_mb: the most resident memory of the process, in MiB.
    """

    name: str
    round: int
    images: int
    units: int
    whole_seconds: float
    cpu_seconds: float
    steady_seconds: float
    first_seconds: float
    peak_mb: float


def linked(shards: Path, folder: Path, times: int) -> None:
    """The shards, so many times over, as hard links (or symbolic ones, on another file system)."""
    for number in range(times):
        for path in sorted(shards.rglob("*.tfrecord")):
            link = folder / f"{number:02d}" / path.relative_to(shards)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, link)
            except OSError:
                link.symlink_to(path)


def cut(shards: Path, folder: Path, count: int, images: int) -> None:
    """So many shards of so many images each, from the records of shards, again and again."""
    folder.mkdir(parents=True)
    records = _records(shards)
    for number in range(count):
        content = b"".join(tfrecord.frame(record) for record in itertools.islice(records, images))
        (folder / f"part-{number:05d}-of-{count:05d}.tfrecord").write_bytes(content)


def _records(shards: Path) -> Iterator[bytes]:
    for path in itertools.cycle(sorted(shards.rglob("*.tfrecord"))):
        with open(path, "rb") as stream:
            yield from tfrecord.read_records(stream)


@dataclasses.dataclass(frozen=True)
class Case:
    """An input that is measured: its name, how its folder is made from the shards, and how often it is run."""

    name: str
    make: Callable[[Path, Path], None]
    rounds: int = 1


CASES = (
    Case("once", lambda shards, folder: linked(shards, folder, 1)),
    Case("ten-times", lambda shards, folder: linked(shards, folder, REPEATS)),
    Case("tiny", lambda shards, folder: cut(shards, folder, TINY_SHARDS, IMAGES_PER_TINY_SHARD)),
    Case(
        "tiny-images",
        lambda shards, folder: cut(
            shards, folder, TINY_IMAGES_SHARDS, TINY_SHARDS * IMAGES_PER_TINY_SHARD // TINY_IMAGES_SHARDS
        ),
    ),
    Case("start", lambda shards, folder: cut(shards, folder, 1, 8), START_ROUNDS),
)


def measure(case: Case, number: int, source: Path, bundle: str, engine: str, out: Path) -> Measurement:
    """Run jobs.infer once, with compiled Python files, as pip leaves them: without, each start compiles all of Beam.

    Raises:
        RunError: it failed.
    """
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    read_once([str(source)])
    run = str(work / "run")
    paths = ["--input", str(source), "--model", bundle, "--out", run, "--engine", engine]
    environment = {**process_environment(sys.executable), "PYTHONPYCACHEPREFIX": str(out / BYTECODE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    log = work / "log"
    started = _now(work)
    command = [sys.executable, "-m", "jobs.infer", *paths]
    measured = run_measured(command, environment, work, work / "stdout", log, TIMEOUT)
    if measured.code:
        raise RunError(f"jobs.infer failed on {case.name}: {last_line(log.read_text(errors='replace'))}")
    images, steady = steady_work(run)
    units = committed_units(run)
    parts = [os.stat(storage.join(run, part_path(PREDICTIONS, unit))).st_mtime for unit in units]
    values = (measured.seconds, measured.cpu_seconds, steady, min(parts) - started, measured.peak_process_mb)
    shutil.rmtree(work)
    return Measurement(case.name, number, images, len(units), *(round(value, 3) for value in values))


def _now(folder: Path) -> float:
    """The time as the file system tells it: its clock may be some milliseconds behind."""
    stamp = folder / "stamp"
    stamp.touch()
    return stamp.stat().st_mtime


def run_cases(cases: Sequence[Case], images: ImageSet, bundle: str, engine: str, out: Path) -> None:
    """Measure what is not stored yet."""
    if not (out / BYTECODE).exists():
        start = CASES[-1]
        measure(start, 0, _made(start, images, out), bundle, engine, out)
    for case, number in [(each, number) for each in cases for number in range(1, each.rounds + 1)]:
        stored = out / STORED / f"{case.name}-{number:02d}.json"
        if stored.exists():
            continue
        source = _made(case, images, out)
        print(f"{case.name}, round {number}: runs", file=sys.stderr, flush=True)
        measurement = measure(case, number, source, bundle, engine, out)
        stored.write_text(json.dumps(dataclasses.asdict(measurement), indent=1) + "\n")


def _made(case: Case, images: ImageSet, out: Path) -> Path:
    """The folder of a case's input."""
    source = out / INPUTS / case.name
    if not source.exists():
        unfinished = source.with_name(f"{case.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(exist_ok=True)
        case.make(Path(images.shards), unfinished)
        unfinished.rename(source)
    return source


def read_measurements(out: Path) -> dict[str, list[Measurement]]:
    """What is stored, by the case's name."""
    found = [Measurement(**json.loads(path.read_text())) for path in sorted((out / STORED).glob("*.json"))]
    return {name: list(group) for name, group in itertools.groupby(found, lambda each: each.name)}


def to_markdown(found: dict[str, list[Measurement]], facts: Sequence[str]) -> str:
    """Two tables: the runs, and the ratios with what they are to be; what was not measured is left out."""
    lines = [
        *(f"- {fact}" for fact in facts),
        "",
        "| run | images | units | whole command, s | processor, s | steady, s | peak, MiB |",
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in (case.name for case in CASES if case.name in found):
        one = found[name][0]
        whole, cpu, steady, peak = (
            statistics.median(getattr(each, key) for each in found[name])
            for key in ("whole_seconds", "cpu_seconds", "steady_seconds", "peak_mb")
        )
        lines.append(
            f"| {name} | {one.images:,} | {one.units:,} | {whole:.1f} | {cpu:.1f} | {steady:.1f} | {peak:.0f} |"
        )
    lines += ["", "| what | measured | to reach |", "| --- | ---: | ---: |"]
    return "\n".join([*lines, *_aims(found)]) + "\n"


def _aims(found: dict[str, list[Measurement]]) -> Iterator[str]:
    once, long = (found[name][0] if name in found else None for name in ("once", "ten-times"))
    tiny, own = (found[name][0] if name in found else None for name in ("tiny", "tiny-images"))
    if once:
        yield f"| peak memory at {once.images:,} images, MiB | {once.peak_mb:.0f} | 350 |"
    if once and long:
        yield f"| peak memory at {long.images:,} over that | {long.peak_mb / once.peak_mb:.3f} | 1.05 |"
        ratio = long.whole_seconds / (REPEATS * once.whole_seconds)
        yield f"| whole command at {long.images:,} over {REPEATS} times that | {ratio:.3f} | 1.03 |"
        ratio = long.cpu_seconds / (REPEATS * once.cpu_seconds)
        yield f"| the same, processor time | {ratio:.3f} | |"
    if tiny and own:
        shards = f"{TINY_SHARDS:,} shards of {IMAGES_PER_TINY_SHARD} over {TINY_IMAGES_SHARDS} of the same images"
        yield f"| whole command, {shards} | {tiny.whole_seconds / own.whole_seconds:.3f} | 1.25 |"
        yield f"| the same, processor time | {tiny.cpu_seconds / own.cpu_seconds:.3f} | |"
        # All that the tiny shards add, start and report of both runs taken off.
        extra = tiny.whole_seconds - (own.whole_seconds - own.steady_seconds)
        yield f"| the same without the time that both take to start and report | {extra / own.steady_seconds:.3f} | |"
    if starts := found.get("start"):
        seconds = [each.first_seconds for each in starts]
        shown = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        yield f"| process start to the first batch's part on disk, s, median of {len(starts)} | {shown} | 4 |"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    names = ",".join(case.name for case in CASES)
    options = argparse.ArgumentParser("python -m benchmarks.scaling", description=DESCRIPTION, allow_abbrev=False)
    options.add_argument("--images", required=True, metavar="DIR", help="folder with a subfolder of images per class")
    options.add_argument("--bundle", default="workspace/bundle", help="a bundle of jobs.train (%(default)s)")
    options.add_argument("--engine", default="litert", help="(%(default)s)")
    options.add_argument("--out", default="workspace/scaling", metavar="DIR", help="for the results (%(default)s)")
    options.add_argument("--limit", type=int, metavar="N", help="so many images, spread evenly over all (all)")
    options.add_argument("--cases", default=names, metavar="NAMES", help="what to measure now (%(default)s)")
    options.add_argument("--page", metavar="FILE", help="put the tables between the markers of this file")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    cases = chosen_cases(options.cases)
    page = Path(options.page) if options.page else None
    if page:
        check_markers(page, MARKERS)
    bundle = open_bundle(os.path.abspath(options.bundle))
    images = image_set(Path(options.images).absolute(), options.limit)
    out = Path(options.out).absolute()
    settings = {
        "images": images.digest,
        "bundle": bundle.spec.fingerprint,
        "engine": options.engine,
        "code": code_digest(),
    }
    open_results(out, settings)
    run_cases(cases, images, bundle.path, options.engine, out)
    machine = describe_machine()
    facts = [
        f"{bundle.spec.backbone} at {bundle.spec.image_size} x {bundle.spec.image_size}, {options.engine}",
        f"{machine['cores']} cores: {machine['processor']}; Python {machine['python']}; files in the page cache",
    ]
    tables = to_markdown(read_measurements(out), facts)
    if page:
        put_between_markers(page, tables, MARKERS)
    print(tables)
    return DONE


def chosen_cases(names: str) -> list[Case]:
    """Cases by names with commas between.

    Raises:
        InputError: a name is unknown.
    """
    known = {case.name: case for case in CASES}
    for name in (chosen := [name.strip() for name in names.split(",")]):
        if name not in known:
            raise InputError(f"there is no case {name!r}; the cases are {', '.join(known)}")
    return [known[name] for name in chosen]


if __name__ == "__main__":
    raise SystemExit(run_command(main, continues=True))
