"""The rows that flow through a run, and the one Arrow schema of each table."""

from __future__ import annotations

import dataclasses

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
    """A shard is cut, damaged or gone, so that an unknown number of its images cannot be read."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
