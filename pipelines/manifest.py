"""Read a manifest: a CSV, TSV or JSON Lines file with one image path, and perhaps a label, per line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from model.errors import InputError
from pipelines import storage
from pipelines.shards import LABEL_COLUMNS, FileEntry, UniqueNames, printable

PATH_COLUMNS = (
    "path",
    "image",
    "image_path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image_file",
    "img_path",
    "uri",
)

_DELIMITERS = ",\t;"


def find_column(columns: Iterable[str], wanted: str | None, usual: Sequence[str]) -> str | None:
    """The column asked for, else the first usual one in any case, else None.

    Raises:
        InputError: the column asked for is not there; the message names the columns present.
    """
    present = list(columns)
    if wanted is not None:
        if wanted not in present:
            raise InputError(f"no column {wanted!r}; the columns are: {', '.join(present)}")
        return wanted
    by_name = {name.strip().lower(): name for name in reversed(present)}
    return next((by_name[name] for name in usual if name in by_name), None)


def is_manifest_header(line: str, path_column: str | None = None) -> bool:
    """Whether a file's first line is a CSV header or a JSON object with a path column."""
    usual = (path_column.lower(),) if path_column else PATH_COLUMNS
    try:
        columns = list(json.loads(line)) if line.lstrip().startswith("{") else _split_header(line)
    except (ValueError, csv.Error, RecursionError):
        return False
    return find_column(columns, None, usual) is not None


def first_line(start: bytes) -> str:
    """The first line that is not blank of a text that begins with these bytes, in UTF-8 or UTF-16."""
    lines = start.decode(_encoding(start), "replace").splitlines()
    return next((line for line in lines if line.strip()), "")


def _encoding(start: bytes) -> str:
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _split_header(line: str) -> list[str]:
    return next(csv.reader([line], delimiter=_delimiter(line)), [])


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def read_manifest(
    path: str, path_column: str | None, label_column: str | None, root: str, unique: UniqueNames | None = None
) -> Iterator[FileEntry]:
    """The image files that a manifest names, in its order, read line by line.

    Args:
        path: a CSV (comma, semicolon or tab; by the header) or JSON Lines file.
        path_column: column of the image paths; None: found among the usual names. A relative path is relative to the
            manifest's folder; a path that is a URL stays one.
        label_column: column of the class names; None: found among the usual names, or unlabelled without one.
        root: folder that image ids are relative to. A file outside it has its absolute path as id where the manifest
            gives an absolute path, else one that begins with ``..``.
        unique: what the ids must be unique with: share one among the manifests of an input.

    Raises:
        InputError: a column is missing, a line cannot be parsed or has no path; the message names the line.
        FileNotFoundError, OSError: the manifest cannot be read.
    """
    unique = unique or UniqueNames()
    folder = posixpath.dirname(path)
    source = printable(_relative(path, root))
    labels: str | None = None
    paths = ""
    for position, (line, row) in enumerate(_rows(path)):
        if position == 0:
            try:
                paths = find_column(row, path_column, PATH_COLUMNS) or ""
                labels = find_column(row, label_column, LABEL_COLUMNS)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            if not paths:
                raise InputError(f"{path}: no column of image paths (--path-column); the columns are: {', '.join(row)}")
        value = row.get(paths)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{path}: line {line} has no {paths}")
        place = value if storage.is_remote(value) or value.startswith("/") else storage.join(folder, value)
        absolute = place == value
        image_id = _relative(place, root) if not absolute or _is_inside(place, root) else place
        yield FileEntry(_normal(place), unique.make(printable(image_id), position), source, _label(row, labels))


def _label(row: Mapping[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column is not None else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return printable(str(value)).strip() or None if value is not None else None


def _normal(path: str) -> str:
    scheme, mark, rest = path.rpartition("://")
    return scheme + mark + posixpath.normpath(rest)


def _is_inside(path: str, root: str) -> bool:
    return _normal(path).startswith(_normal(root).rstrip("/") + "/")


def _relative(path: str, root: str) -> str:
    """Path relative to a root of the same scheme; both are made lexically normal first."""
    scheme, _, inner = _normal(path).rpartition("://")
    root_scheme, _, root_inner = _normal(root).rpartition("://")
    return posixpath.relpath(inner, root_inner or ".") if scheme == root_scheme else path


def _rows(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and columns of each row that is not blank."""
    with storage.open_input(path) as stream:
        start = stream.read(4)
        stream.seek(0)
        text = io.TextIOWrapper(stream, _encoding(start), errors="surrogateescape", newline="")
        try:
            header = text.readline()
            while header and not header.strip():
                header = text.readline()
            if header.lstrip().startswith("{"):
                yield from _json_rows(header, text)
            elif header:
                yield from _csv_rows(header, text)
        except (ValueError, RecursionError, csv.Error) as error:
            raise InputError(f"{path}: {error}") from error


def _json_rows(first: str, rest: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate((text for part in ((first,), rest) for text in part), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object")
        yield number, row


def _csv_rows(header: str, rest: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    columns = _split_header(header)
    if duplicates := {name for name in columns if columns.count(name) > 1}:
        raise ValueError(f"columns named twice: {', '.join(sorted(duplicates))}")
    reader = csv.reader(rest, delimiter=_delimiter(header))
    for row in reader:
        if row:
            # A path may hold a line break, so the reader counts lines, after the header's.
            yield reader.line_num + 1, dict(zip(columns, row, strict=False))
