"""Commit a work unit: its parts first, its marker last."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.classification import UnitTables
from pipelines.records import ShardError
from pipelines.run import FAILURES, PREDICTIONS, TEMPORARY, THUMBNAILS, Marker, marker_path, part_path, read_marker
from pipelines.units import WorkUnit


def commit(run: str, unit: WorkUnit, tables: UnitTables, model_fingerprint: str) -> Marker:
    """Write a unit's parts, then its marker; the marker makes them count.

    A runner may work on a unit twice at the same time. The parts of both are equal to the byte, each file is put whole,
    and whoever comes second finds the marker and writes nothing.

    Args:
        run: the run directory.
        unit: what was classified.
        tables: its outcome.
        model_fingerprint: of the model that classified it.

    Returns:
        The marker that stands in the run.

    Raises:
        OSError: a file cannot be written; without its marker the unit is done again by the next attempt.
    """
    marker_file = marker_path(run, unit.name)
    if storage.exists(marker_file):
        return read_marker(run, unit.name)
    temporary = storage.join(run, TEMPORARY)
    files = {}
    for table, content in (
        (PREDICTIONS, tables.predictions),
        (FAILURES, tables.failures),
        (THUMBNAILS, tables.thumbnails),
    ):
        if content.num_rows == 0:
            continue
        part = part_path(table, unit.name)
        data = encode_parquet(content)
        storage.put(storage.join(run, part), data, temporary)
        files[part] = hashlib.sha256(data).hexdigest()
    stages = Counter(
        f"{stage}/{code}"
        for stage, code in zip(tables.failures["stage"].to_pylist(), tables.failures["code"].to_pylist(), strict=True)
    )
    marker = Marker(
        unit=unit.name,
        source=unit.source,
        images=tables.predictions.num_rows + tables.failures.num_rows,
        predictions=tables.predictions.num_rows,
        failures=tables.failures.num_rows,
        failure_codes=dict(sorted(stages.items())),
        shard_errors=_by_source(unit, tables.shard_error),
        input_bytes=unit.size,
        seconds=round(tables.seconds, 3),
        counts=tables.counts,
        files=files,
        model_fingerprint=model_fingerprint,
    )
    storage.put(marker_file, marker.to_bytes(), temporary)
    return marker


def _by_source(unit: WorkUnit, error: ShardError | None) -> Mapping[str, str]:
    if error is None:
        return {}
    return error.by_source or {unit.source: str(error)}


def encode_parquet(table: pa.Table) -> bytes:
    """A Parquet file, zstd-compressed, that is the same to the byte for the same table."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue().to_pybytes()  # type: ignore[no-any-return]
