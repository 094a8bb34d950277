"""A run directory: its configuration, its lock, its commit markers, and the accounting over them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from model.errors import InputError, RunError
from model.metrics import MetricCounts
from pipelines import lock, storage

FORMAT_VERSION = 1
RUN_FILE = "run.json"
PLAN = "plan"
COMMITS = "_commits"
TEMPORARY = "_tmp"
REPORT = "report"
SUCCESS = "_SUCCESS"
LOCK = "_lock.json"
PREDICTIONS = "predictions"
FAILURES = "failures"
THUMBNAILS = "thumbnails"
TABLES = (PREDICTIONS, FAILURES, THUMBNAILS)


@dataclasses.dataclass(frozen=True)
class Marker:
    """A commit marker: the unit is done, and this is what became of it.

    Attributes:
        unit: the unit's name.
        source: the shard or folder that was read; of several shards, the folder that holds them all.
        images: images read; always predictions plus failures.
        predictions, failures: rows of the two tables.
        failure_codes: failures by ``stage/code``.
        shard_errors: why shards could not be read to their ends, by their sources.
        input_bytes: size of the unit's input in bytes.
        seconds: wall time of reading and classifying.
        counts: metric counts over the predictions.
        files: SHA-256 (hexadecimal) of each part, by its path in the run; tables without rows have no part.
        model_fingerprint: of the model that classified it.
    """

    unit: str
    source: str
    images: int
    predictions: int
    failures: int
    failure_codes: Mapping[str, int]
    shard_errors: Mapping[str, str]
    input_bytes: int
    seconds: float
    counts: MetricCounts
    files: Mapping[str, str]
    model_fingerprint: str

    def to_bytes(self) -> bytes:
        """The marker file's content."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps({**values, "counts": self.counts.to_json()}, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Marker:
        """Read a marker file.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        values = json.loads(data)
        return cls(**{**values, "counts": MetricCounts.from_json(values["counts"])})


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over committed units; merging is associative and commutative.

    Attributes:
        units: number of units.
        parts: number of parts that they have written.
        images, predictions, failures, failure_codes, input_bytes, seconds, counts: as in :class:`Marker`.
        shard_errors: (source, message) of the shards that could not be read to their end, sorted.
    """

    units: int
    parts: int
    images: int
    predictions: int
    failures: int
    failure_codes: Mapping[str, int]
    shard_errors: tuple[tuple[str, str], ...]
    input_bytes: int
    seconds: float
    counts: MetricCounts

    @classmethod
    def zero(cls, classes: Iterable[str]) -> Totals:
        """The sums over no units."""
        return cls(0, 0, 0, 0, 0, {}, (), 0, 0.0, MetricCounts.zero(tuple(classes)))

    @classmethod
    def of(cls, marker: Marker) -> Totals:
        """The sums over one unit."""
        return cls(
            units=1,
            parts=len(marker.files),
            images=marker.images,
            predictions=marker.predictions,
            failures=marker.failures,
            failure_codes=marker.failure_codes,
            shard_errors=tuple(sorted(marker.shard_errors.items())),
            input_bytes=marker.input_bytes,
            seconds=marker.seconds,
            counts=marker.counts,
        )

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            units=self.units + other.units,
            parts=self.parts + other.parts,
            images=self.images + other.images,
            predictions=self.predictions + other.predictions,
            failures=self.failures + other.failures,
            failure_codes=dict(sorted((Counter(self.failure_codes) + Counter(other.failure_codes)).items())),
            shard_errors=tuple(sorted(self.shard_errors + other.shard_errors)),
            input_bytes=self.input_bytes + other.input_bytes,
            seconds=self.seconds + other.seconds,
            counts=self.counts + other.counts,
        )


def part_path(table: str, unit: str) -> str:
    """Path within a run of a unit's part of a table."""
    return f"{table}/{unit}.parquet"


def marker_path(run: str, unit: str) -> str:
    """Path of a unit's commit marker."""
    return storage.join(run, COMMITS, f"{unit}.json")


def committed_units(run: str) -> list[str]:
    """Names of the units that are committed, sorted.

    Raises:
        RunError: the markers cannot be listed.
    """
    try:
        names = storage.list_names(storage.join(run, COMMITS))
    except OSError as error:
        raise RunError(f"{run}/{COMMITS} cannot be read: {error.strerror}") from error
    return [name.removesuffix(".json") for name in names if _is_marker(name)]


def _is_marker(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def read_marker(run: str, unit: str) -> Marker:
    """A unit's commit marker.

    Raises:
        RunError: it is missing or damaged.
    """
    path = marker_path(run, unit)
    try:
        return Marker.from_bytes(storage.read_bytes(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the commit marker {path} is damaged: {error}; delete it and start the run again") from error


def read_valid_marker(run: str, unit: str, model_fingerprint: str) -> Marker | None:
    """A unit's commit marker if it can be relied on: it is whole, of this model, and its parts are what it says.

    A power cut may keep a marker and lose a part that was written before it. A marker without its parts is void: it is
    removed, and the unit is done again.
    """
    path = marker_path(run, unit)
    if not storage.exists(path):
        return None
    try:
        marker = read_marker(run, unit)
        if marker.model_fingerprint == model_fingerprint and all(
            hashlib.sha256(storage.read_bytes(storage.join(run, part))).hexdigest() == digest
            for part, digest in marker.files.items()
        ):
            return marker
    except (RunError, OSError):
        pass
    storage.delete(path)
    return None


def read_totals(run: str, classes: Iterable[str]) -> Totals:
    """The sums over a run's commit markers; raises as :func:`read_marker`."""
    return functools.reduce(operator.add, map(Totals.of, read_markers(run)), Totals.zero(classes))


def read_markers(run: str) -> Iterator[Marker]:
    """All commit markers, in the units' order; raises as :func:`read_marker`."""
    return (read_marker(run, unit) for unit in committed_units(run))


def read_run(run: str) -> dict[str, Any]:
    """The content of ``run.json``.

    Raises:
        RunError: there is none, or it is damaged or of a later version.
    """
    path = storage.join(run, RUN_FILE)
    try:
        values: dict[str, Any] = json.loads(storage.read_bytes(path))
        version = values["format_version"]
        if version <= FORMAT_VERSION and not {"settings", "model", "plan_digest"} <= set(values):
            raise ValueError("a key is missing")
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"no run at {run}: run python -m jobs.infer first (no {path})") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if version > FORMAT_VERSION:
        raise RunError(f"{path} is of version {version}; this crackscan reads up to {FORMAT_VERSION}: upgrade it")
    return values


def is_finished(run: str) -> bool:
    """Whether a run has its ``_SUCCESS``."""
    return storage.exists(storage.join(run, SUCCESS))


def check_is_run_or_empty(run: str) -> None:
    """Refuse a folder with other things in it.

    Raises:
        InputError: it is a file, or a folder that holds something and no ``run.json``, plan or lock.
    """
    try:
        present = set(storage.list_entries(run))
    except NotADirectoryError:
        raise InputError(f"{run} is a file: give the run a folder of its own by --out") from None
    except OSError as error:
        raise InputError(f"--out {run} cannot be read: {error.strerror}") from error
    if present and not present & {RUN_FILE, PLAN, LOCK}:
        raise InputError(f"{run} holds other files and no run: give the run a folder of its own by --out")


def locked(run: str) -> contextlib.AbstractContextManager[None]:
    """Hold a run for one writer; see :func:`pipelines.lock.held`."""
    return lock.held(storage.join(run, LOCK), run)
