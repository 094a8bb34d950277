"""The rows that flow through a run, and the one Arrow schema of each table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pyarrow as pa


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRecord:
    """One encoded image as a reader found it.

    Attributes:
        image_id: unique within the run: the path relative to the input root, or shard name and key.
        source: the shard or folder it was read from, relative to the input root.
        position: index within the shard, the manifest, or the sorted files of a folder, from 0.
        encoded: the bytes of the image file.
        label: class name, or None where unlabelled.
    """

    image_id: str
    source: str
    position: int
    encoded: bytes
    label: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A dead letter: an image that could not be classified.

    Attributes:
        image_id, source, position: as in :class:`ImageRecord`.
        stage: ``read`` or ``decode``.
        code: short and stable name of the error's kind, for grouping.
        message: one line for a person.
    """

    image_id: str
    source: str
    position: int
    stage: str
    code: str
    message: str


class ShardError(Exception):
    """A shard is cut, damaged or gone, so that an unknown number of its images cannot be read.

    Attributes:
        code: short and stable name of the error's kind.
        by_source: the message of each such shard of a work unit, by the shard's ``source``; empty where the error is
            not a unit's.
    """

    def __init__(self, code: str, message: str, by_source: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.by_source = dict(by_source or {})

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str, dict[str, str]]]:
        # By default an exception is copied to another process by its message alone.
        return ShardError, (self.code, str(self), self.by_source)

    @classmethod
    def of_shards(cls, errors: Mapping[str, ShardError]) -> ShardError:
        """One error for all shards of a unit that could not be read to their ends, from one or more, by source."""
        messages = {source: str(error) for source, error in errors.items()}
        return cls(next(iter(errors.values())).code, "; ".join(messages.values()), messages)


PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("predicted_class", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("brightness", pa.float32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("model_fingerprint", pa.string(), nullable=False),
    ]
)

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

THUMBNAIL_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("predicted_class", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("jpeg", pa.binary(), nullable=False),
    ]
)
