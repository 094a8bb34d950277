"""Iterate the images of row groups of a Parquet file, as :mod:`pipelines.shards` says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from model.errors import InputError
from pipelines import storage
from pipelines.records import Failure, ImageRecord, ShardError
from pipelines.shards import LABEL_COLUMNS, resolve_label, shard_errors

IMAGE_COLUMNS = ("image", "img", "image_bytes", "image/encoded", "encoded", "bytes", "content", "jpg", "jpeg", "png")

_BATCH_ROWS = 16


def find_columns(schema: Any, image_column: str | None, label_column: str | None) -> tuple[str, str | None]:
    """The image column and the label column (None: there is none) of a Parquet file's Arrow schema.

    An image column is binary, or a struct with the field ``bytes``, as Hugging Face writes it. Without a name the usual
    names are tried, then the only column of such a type.

    Raises:
        InputError: a column is missing or of another type; the message names the columns that are there.
    """
    present = f"the columns are: {', '.join(schema.names)}"
    for name in (image_column, label_column):
        if name is not None and name not in schema.names:
            raise InputError(f"no column {name!r}; {present}")
    if label_column is None:
        label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    candidates = [field.name for field in schema if _holds_images(field.type)]
    if image_column is None:
        usual = [name for name in IMAGE_COLUMNS if name in candidates]
        if not usual and len(candidates) != 1:
            raise InputError(f"cannot tell the image column (--image-column); {present}")
        image_column = (usual or candidates)[0]
    elif image_column not in candidates:
        raise InputError(f"column {image_column!r} holds no image bytes but {schema.field(image_column).type}")
    return image_column, label_column


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: Any, label_column: str | None) -> list[str] | None:
    """The names that Hugging Face's ``datasets`` stores in the schema's metadata for a ClassLabel column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def read_parquet(
    path: str,
    source: str,
    row_groups: tuple[int, int] | None,
    image_column: str | None,
    label_column: str | None,
    classes: Sequence[str],
) -> Iterator[ImageRecord | Failure]:
    """The images of some row groups (first, and the one behind the last; None: all) of a Parquet file.

    Columns as in :func:`find_columns`. A whole-number label is an index into the Hugging Face class names where the
    file has them, else into ``classes``. The position is the row in the file; the id is ``source#row``, or
    ``source/path#row`` where the struct has a path. A row without bytes is a Failure (``no-image``).

    Raises:
        ShardError: see :mod:`pipelines.shards`; ``changed`` where the columns or row groups are not there (any more).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with shard_errors(source), storage.open_input(path) as stream:
        try:
            # Page by page: pre_buffer would read whole row groups, which may be as large as the file.
            file = pq.ParquetFile(stream, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True)
            image_column, label_column = find_columns(file.schema_arrow, image_column, label_column)
            first, stop = row_groups or (0, file.num_row_groups)
            if stop > file.num_row_groups:
                raise ShardError(
                    "changed", f"row groups {first} to {stop - 1} of a file that has {file.num_row_groups}"
                )
            row = sum(file.metadata.row_group(group).num_rows for group in range(first))
            names = _class_names(file.schema_arrow, label_column) or classes
            columns = [image_column] if label_column is None else [image_column, label_column]
            if first == stop:
                return
            for batch in file.iter_batches(
                _BATCH_ROWS, row_groups=range(first, stop), columns=columns, use_threads=False
            ):
                images = batch.column(image_column)
                labels = batch.column(label_column) if label_column is not None else None
                for index in range(batch.num_rows):
                    label = None if labels is None else resolve_label(labels[index].as_py(), names)
                    yield _parquet_image(images[index].as_py(), source, row, label)
                    row += 1
        except InputError as error:
            raise ShardError("changed", str(error)) from error
        except pa.ArrowException as error:
            # The footer stands at the end: a file without it was cut.
            code = "truncated" if "magic bytes not found" in str(error) or "file size is" in str(error) else "corrupt"
            raise ShardError(code, str(error).splitlines()[0]) from error


def _parquet_image(value: Any, source: str, row: int, label: str | None) -> ImageRecord | Failure:
    name = ""
    if isinstance(value, dict):
        name = f"/{value['path']}" if value.get("path") else ""
        value = value["bytes"]
    image_id = f"{source}{name}#{row}"
    if value is None:
        return Failure(image_id, source, row, "read", "no-image", "the row holds no image bytes")
    return ImageRecord(image_id, source, row, value, label)
