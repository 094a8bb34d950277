"""SQL over the tables of a run with DuckDB, which sees those tables and nothing else of the machine."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds

from model.errors import InputError
from pipelines import storage
from pipelines.records import FAILURE_SCHEMA, PREDICTION_SCHEMA
from pipelines.run import FAILURES, PREDICTIONS, part_path, read_markers, read_run

UNIT_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("predictions", pa.int64(), nullable=False),
        pa.field("failures", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("error", pa.string()),
    ]
)
"""The ``units`` table: seconds of work, and an ``error`` where a shard of the unit was cut or gone."""

EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "The mistakes, the most confident first (labelled images only)",
        (
            "SELECT image_id, label, predicted_class, score FROM predictions WHERE label <> predicted_class "
            "ORDER BY score DESC LIMIT 20"
        ),
    ),
    (
        "Images by source and predicted class",
        (
            "SELECT source, predicted_class, count(*) AS images, avg(score) AS mean_score FROM predictions "
            "GROUP BY ALL ORDER BY ALL"
        ),
    ),
    (
        "The slowest work units",
        (
            "SELECT unit, source, images, failures, seconds, images / seconds AS images_per_second, error FROM units "
            "ORDER BY seconds DESC LIMIT 10"
        ),
    ),
    (
        "What failed, by kind of error and source",
        (
            "SELECT code, source, count(*) AS images, min(message) AS example FROM failures "
            "GROUP BY code, source ORDER BY images DESC, code, source"
        ),
    ),
)

Style = Literal["table", "csv", "json"]


def connect(
    predictions_files: Sequence[str], failures_files: Sequence[str], units: pa.Table
) -> duckdb.DuckDBPyConnection:
    """Open the tables ``predictions``, ``failures`` and ``units`` of a run for SQL.

    The connection reads the given files and no other, writes none, loads no extension, and this cannot be switched
    back: a query may come from someone who must not see the rest of the machine.

    Args:
        predictions_files: committed parts, paths or URLs of one scheme, of ``PREDICTION_SCHEMA``; may be empty.
        failures_files: the same of ``FAILURE_SCHEMA``.
        units: rows of ``UNIT_SCHEMA``.

    Raises:
        InputError: a file is not there or its store cannot be opened.
        ValueError, KeyError, pyarrow.ArrowInvalid: ``units`` does not have the columns of ``UNIT_SCHEMA``.
    """
    connection = duckdb.connect(":memory:")
    connection.register("predictions", _dataset(predictions_files, PREDICTION_SCHEMA))
    connection.register("failures", _dataset(failures_files, FAILURE_SCHEMA))
    connection.register("units", units.select(UNIT_SCHEMA.names).cast(UNIT_SCHEMA))
    # This also ends DuckDB's search for unknown table names among the Python variables of the caller.
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def open_run_tables(run: str) -> duckdb.DuckDBPyConnection:
    """The tables of a run directory's committed units; see :func:`connect`.

    Raises:
        RunError: there is no run, or a marker is damaged.
        InputError: a part is not there.
    """
    read_run(run)
    markers = list(read_markers(run))
    files: dict[str, list[str]] = {PREDICTIONS: [], FAILURES: []}
    for marker in markers:
        for table, paths in files.items():
            part = part_path(table, marker.unit)
            if part in marker.files:
                paths.append(storage.join(run, part))
    columns = ("unit", "source", "images", "predictions", "failures", "seconds")
    units = [
        {
            **{name: getattr(marker, name) for name in columns},
            "error": "; ".join(marker.shard_errors.values()) or None,
        }
        for marker in markers
    ]
    return connect(files[PREDICTIONS], files[FAILURES], pa.Table.from_pylist(units, UNIT_SCHEMA))


def _dataset(files: Sequence[str], schema: pa.Schema) -> ds.Dataset | pa.Table:
    if not files:
        return schema.empty_table()
    try:
        if not storage.is_remote(files[0]):
            return ds.dataset(list(files), schema=schema, format="parquet")
        filesystem = fsspec.core.url_to_fs(files[0])[0]
        paths = [fsspec.core.strip_protocol(path) for path in files]
        return ds.dataset(paths, schema=schema, format="parquet", filesystem=filesystem)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"cannot open the tables of the run: {error}") from error


def run_sql(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The result of a query; of several statements, that of the last.

    Raises:
        InputError: DuckDB refuses the query, or it gives no table; the message is DuckDB's, in one line.
    """
    try:
        relation = connection.sql(sql)
        table = None if relation is None else relation.to_arrow_table()
    except duckdb.Error as error:
        said = str(error).split("\nLINE ")[0]
        raise InputError(" ".join(said.split())) from error
    if table is None:
        raise InputError("the query gives no table: it must end with a SELECT")
    return table


def format_table(table: pa.Table, style: Style) -> str:
    """A result as text that ends with a line break.

    ``table`` aligns the columns, numbers to the right, and shows null as ``NULL``; ``csv`` has a header, quoted
    strings, empty cells for null, and lists as JSON; ``json`` is an array with one object a line, in which null and
    numbers that JSON lacks (NaN, infinities) are ``null``.

    Raises:
        ValueError: the style is none of these.
    """
    names = _unique(table.column_names)
    if style == "csv":
        columns = [_csv_column(column) for column in table.columns]
        sink = pa.BufferOutputStream()
        pa_csv.write_csv(pa.table(columns, names=names), sink)
        return str(sink.getvalue().to_pybytes(), "utf-8")
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    if style == "json":
        objects = [_to_json(dict(zip(names, row, strict=True))) for row in rows]
        return "[\n" + ",\n".join(objects) + "\n]\n" if objects else "[]\n"
    if style != "table":
        raise ValueError(f"style {style!r} is none of table, csv and json")
    numeric = [pa.types.is_floating(t) or pa.types.is_integer(t) or pa.types.is_decimal(t) for t in table.schema.types]
    return _aligned([names, *([_cell(value) for value in row] for row in rows)], numeric) + _row_count(len(rows))


def describe(connection: duckdb.DuckDBPyConnection) -> str:
    """The tables of a run, their columns and types, and queries to begin with."""
    lines: list[str] = []
    for table in ("predictions", "failures", "units"):
        columns = run_sql(connection, f"DESCRIBE {table}").to_pylist()
        width = max(len(column["column_name"]) for column in columns)
        lines += [table, *(f"  {c['column_name']:<{width}}  {c['column_type'].lower()}" for c in columns), ""]
    lines.append("Examples")
    for title, sql in EXAMPLES:
        lines += ["", f"  {title}:", f"    {sql}"]
    return "\n".join(lines) + "\n"


def _unique(names: Sequence[str]) -> list[str]:
    """Names made distinct (``a``, ``a_2``): SQL allows equal ones, a JSON object would lose a column."""
    unique: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in unique:
            number += 1
            candidate = f"{name}_{number}"
        unique.append(candidate)
    return unique


def _csv_column(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if pa.types.is_nested(column.type) or pa.types.is_interval(column.type):
        return pa.array([None if value is None else _to_json(value) for value in column.to_pylist()], pa.string())
    # The sum of a BIGINT column is a HUGEINT, which Arrow knows as a decimal of scale 0.
    return pc.cast(column, pa.string()) if pa.types.is_decimal(column.type) else column


def _plain(value: Any) -> Any:
    """A value of a result as the types of JSON; dates, intervals, blobs and the like as their text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _to_json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(_cell(item) for item in value) + "]"
    # Names of files come from anywhere, and may hold line breaks or a terminal's escape codes.
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def _aligned(rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(numeric))]
    lines = []
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        cells = zip(row, widths, numeric, strict=True)
        lines.append("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells))
    return "".join(line.rstrip() + "\n" for line in lines)


def _row_count(rows: int) -> str:
    return f"({rows:,} row{'' if rows == 1 else 's'})\n"
