"""What a billion images would take on Dataflow and on Flink: formulas, and a simulation that checks them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.recipes_table import check_markers, put_between_markers
from benchmarks.scheduling import Cluster, simulate
from jobs.command import DONE, run_command
from model.errors import InputError

MARKERS = ("<!-- scale -->", "<!-- /scale -->")

PUTS_PER_UNIT = 3
"""Predictions, thumbnails, marker; a fourth where images failed."""
BYTES_PER_GET = 5 * 2**20
"""fsspec reads ahead in blocks of so much."""
LISTED_PER_REQUEST = 1000
FILE_BYTES = 192
PLACE_BYTES = 313
"""Of memory for a listed file and for a unit's place, measured with tracemalloc on CPython 3.11."""
LOOKUP_SECONDS = 0.05
"""An assumption: one small request to a bucket, one after the other."""

DESCRIPTION = """\
Print what a large run would take: units, hours and cost by formulas from a measured rate and list prices, a simulation
of the scheduling beside them, and what each step that one machine does alone grows to. Prices are options: those marked
as assumptions in the output are to be replaced by today's.
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A large run.

    Attributes:
        images, image_bytes: how many, and the size of one.
        rate: images per second and core, measured.
        cores: of all workers together.
        cores_per_slot: cores that work on one unit together.
        shard_bytes: of a shard, which is a work unit.
        unit_seconds: fixed costs of a unit: opening the shard, putting its parts.
        start_seconds: until a worker is ready.
    """

    images: float = 1e9
    image_bytes: float = 6000.0
    rate: float = 180.0
    cores: int = 1000
    cores_per_slot: int = 1
    shard_bytes: float = 64e6
    unit_seconds: float = 1.0
    start_seconds: float = 180.0

    @property
    def units(self) -> int:
        return math.ceil(self.images * self.image_bytes / self.shard_bytes)

    @property
    def slots(self) -> int:
        return self.cores // self.cores_per_slot

    @property
    def seconds_per_unit(self) -> float:
        images = self.shard_bytes / self.image_bytes
        return images / (self.rate * self.cores_per_slot) + self.unit_seconds

    @property
    def seconds(self) -> float:
        """Start, work in equal shares, and on average half a unit at the end that not all slots have."""
        return self.start_seconds + (self.units / self.slots + 0.5) * self.seconds_per_unit

    @property
    def core_hours(self) -> float:
        return self.cores * self.seconds / 3600.0


@dataclasses.dataclass(frozen=True)
class Prices:
    """US dollars; us-central1.

    Attributes:
        dataflow_core, dataflow_gb: per hour of a batch worker's core, and of a GB of its memory.
        core, gb: the same of a virtual machine, such as Flink's.
        spot: share of a virtual machine's price that a spot machine costs.
        put, get: per 1,000 requests (classes A and B of Cloud Storage).
        gb_per_core: memory of the workers.
    """

    dataflow_core: float = 0.056
    dataflow_gb: float = 0.003557
    core: float = 0.0316
    gb: float = 0.0042
    spot: float = 0.4
    put: float = 0.005
    get: float = 0.0004
    gb_per_core: float = 4.0

    def dataflow(self, job: Job) -> float:
        return job.core_hours * (self.dataflow_core + self.gb_per_core * self.dataflow_gb)

    def flink(self, job: Job) -> float:
        return job.core_hours * (self.core + self.gb_per_core * self.gb)

    def requests(self, job: Job) -> float:
        puts = job.units * PUTS_PER_UNIT + job.units / LISTED_PER_REQUEST
        # The shard's blocks, its line of the plan, and whether its marker is there.
        gets = job.units * (math.ceil(job.shard_bytes / BYTES_PER_GET) + 2)
        return (puts * self.put + gets * self.get) / 1000.0


def estimates(job: Job, prices: Prices) -> Iterator[str]:
    """The formulas, by the size of a shard."""
    yield "| shard | images | units | s per unit | hours | core hours | Dataflow | machines | spot | requests |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for megabytes in (8, 64, 256, 1024):
        each = dataclasses.replace(job, shard_bytes=megabytes * 1e6)
        yield (
            f"| {megabytes:,} MB | {each.shard_bytes / each.image_bytes:,.0f} | {each.units:,} "
            f"| {each.seconds_per_unit:,.0f} | {each.seconds / 3600:.2f} | {each.core_hours:,.0f} "
            f"| ${prices.dataflow(each):,.0f} | ${prices.flink(each):,.0f} "
            f"| ${prices.spot * prices.flink(each):,.0f} | ${prices.requests(each):,.2f} |"
        )


def simulations(job: Job) -> Iterator[str]:
    """The simulation beside the formula: what goes wrong, one thing after the other, then the size of a shard."""
    ordinary = Cluster(job.slots, spread=0.2, start_seconds=job.start_seconds)
    slow = dataclasses.replace(ordinary, slow_share=0.05, slow_factor=3.0)
    killed = dataclasses.replace(ordinary, kills_per_hour=0.1)
    fixed = dataclasses.replace(slow, sharing="fixed")
    both = dataclasses.replace(slow, kills_per_hour=0.1)
    megabyte = 1e6
    cases: list[tuple[str, Cluster, float]] = [
        ("units of like times, pulled", ordinary, job.shard_bytes),
        ("5 % of the slots 3 times as slow, pulled (Dataflow)", slow, job.shard_bytes),
        ("the same, backup attempts", dataclasses.replace(slow, backup=True), job.shard_bytes),
        ("the same, dealt out beforehand (Flink)", fixed, job.shard_bytes),
        ("a slot is killed every 10 hours, pulled", killed, job.shard_bytes),
        (
            "the same, bundles of 20 done again whole",
            dataclasses.replace(killed, bundle=20, asks=False),
            job.shard_bytes,
        ),
        ("the same, committed units left out", dataclasses.replace(killed, bundle=20), job.shard_bytes),
        *((f"slow and killed slots, pulled, shards of {size:,} MB", both, size * megabyte) for size in (16, 256, 1024)),
    ]
    yield "| what | formula, h | simulated, h | over the formula | done for nothing | attempts per unit | kills |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for title, cluster, size in cases:
        each = dataclasses.replace(job, shard_bytes=size)
        found = simulate(each.units, each.seconds_per_unit, cluster)
        yield (
            f"| {title} | {each.seconds / 3600:.2f} | {found.seconds / 3600:.2f} "
            f"| {found.seconds / each.seconds:.2f} x | {found.waste:.2%} "
            f"| {found.attempts / each.units:.3f} | {found.kills:,} |"
        )


def growth(job: Job, prices: Prices) -> Iterator[str]:
    """What one process does alone, and what all ask of the bucket, at 1, 10 and 100 times the images."""
    scales = (1, 10, 100)
    jobs = [dataclasses.replace(job, images=job.images * scale) for scale in scales]
    hours = LOOKUP_SECONDS / 3600
    rows = [
        ("units", [f"{each.units:,}" for each in jobs]),
        (
            "cores to be done in the same time",
            [f"{math.ceil(job.cores * each.images / job.images):,}" for each in jobs],
        ),
        ("submitter: files and places in memory, GB", _memory(each.units for each in jobs)),
        (
            "the same for a folder of single images, GB",
            [f"{each.images * FILE_BYTES / 1e9:,.0f}" for each in jobs],
        ),
        ("one request per unit, one after the other, h", [f"{each.units * hours:,.1f}" for each in jobs]),
        (
            "a marker and three parts per unit, one after the other, h",
            [f"{each.units * 4 * hours:,.1f}" for each in jobs],
        ),
        (
            "puts per second, if done in the same time",
            [f"{each.units * PUTS_PER_UNIT / job.seconds:,.0f}" for each in jobs],
        ),
        ("cost of the requests", [f"${prices.requests(each):,.0f}" for each in jobs]),
        (
            "listing the markers twice a second for the progress line, $ per hour",
            [f"{math.ceil(each.units / LISTED_PER_REQUEST) * 7200 * prices.put / 1000:,.0f}" for each in jobs],
        ),
    ]
    yield "| what | 1 x | 10 x | 100 x |"
    yield "| --- | ---: | ---: | ---: |"
    for title, cells in rows:
        yield f"| {title} | {' | '.join(cells)} |"


def _memory(units: Iterator[int] | Sequence[int]) -> list[str]:
    return [f"{each * (FILE_BYTES + 2 * PLACE_BYTES) / 1e9:,.2f}" for each in units]


def to_markdown(job: Job, prices: Prices) -> str:
    """All tables."""
    inputs = (
        f"Inputs: {job.images:,.0f} images of {job.image_bytes:,.0f} bytes, {job.rate:g} images/s and core, "
        f"{job.cores:,} cores, {job.cores_per_slot} per slot, {job.unit_seconds:g} s of fixed costs per unit, "
        f"{job.start_seconds:g} s until a worker is ready; shards of {job.shard_bytes / 1e6:g} MB where not said "
        f"otherwise. Prices: {', '.join(f'{name} {value:g}' for name, value in dataclasses.asdict(prices).items())}."
    )
    sections = [
        [inputs],
        ["### By the formulas", "", *estimates(job, prices)],
        ["### The scheduling, simulated", "", *simulations(job)],
        ["### What grows", "", *growth(job, prices)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser("python -m benchmarks.scale", description=DESCRIPTION, allow_abbrev=False)
    for title, kind in (("the run", Job), ("prices in US dollars", Prices)):
        group = options.add_argument_group(title)
        for field in dataclasses.fields(kind):
            name = f"--{field.name.replace('_', '-')}"
            convert = type(field.default)
            group.add_argument(name, type=convert, default=field.default, metavar="N", help="(%(default)s)")
    options.add_argument("--page", metavar="FILE", help="put the tables between the markers of this file")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = vars(parser().parse_args(arguments))
    for field in (*dataclasses.fields(Job), *dataclasses.fields(Prices)):
        lowest = 1 if field.type == "int" else 0
        if not options[field.name] >= lowest or (options[field.name] == 0 and field.name in _DIVISORS):
            raise InputError(f"--{field.name.replace('_', '-')} {options[field.name]} is too small")
    job = Job(**{field.name: options[field.name] for field in dataclasses.fields(Job)})
    prices = Prices(**{field.name: options[field.name] for field in dataclasses.fields(Prices)})
    if job.cores_per_slot > job.cores:
        raise InputError("--cores-per-slot is more than --cores")
    page = Path(options["page"]) if options["page"] else None
    if page:
        check_markers(page, MARKERS)
    tables = to_markdown(job, prices)
    if page:
        put_between_markers(page, tables, MARKERS)
    else:
        print(tables)
    return DONE


_DIVISORS = frozenset({"images", "image_bytes", "rate", "shard_bytes"})


if __name__ == "__main__":
    raise SystemExit(run_command(main))
