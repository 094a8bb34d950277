"""What ``dataset.json`` says of prepared data: classes, counts, split and fingerprint, and where the shards lie."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Mapping
from typing import Any

from model.errors import InputError

SPLITS = ("train", "val", "test")
DATASET_FILE = "dataset.json"
REJECTED_FILE = "rejected.jsonl"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Prepared data, as ``python -m jobs.prepare`` left it.

    Attributes:
        data: the folder it lies in.
        classes: sorted class names; ``image/class/label`` is an index into them.
        counts: images by split and class; every split and class is there, with 0 where it has none.
        split: shares of train, val and test, each in (0, 1), of sum 1.
        seed: of the split.
        shards: files per split.
        duplicates: ``groups`` of byte-identical files and their ``surplus`` files (all kept, each group in one split).
        conflicts: ``groups`` of byte-identical files under different labels and their ``files`` (all rejected).
        rejected: files that are not in the shards, conflicts included; ``rejected.jsonl`` names each.
        skipped: files that were not looked into, by extension or kind.
        dimensions: ``mean``, ``minimum`` and ``maximum`` of ``width`` and ``height`` in pixels, as ``mean_width`` etc.
        source: what the data was made of, as it was named.
        source_sha256: SHA-256 (hexadecimal) of the source archive, or None where it was no archive.
        listing_digest: SHA-256 (hexadecimal) of what the source held: tells whether it is still the same.
        created_by: name and version of the program.
        fingerprint: SHA-256 (hexadecimal) over the content of all kept images, their classes, the split and the seed.
    """

    data: str
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    split: tuple[float, float, float]
    seed: int
    shards: int
    duplicates: Mapping[str, int]
    conflicts: Mapping[str, int]
    rejected: int
    skipped: Mapping[str, int]
    dimensions: Mapping[str, float]
    source: str
    source_sha256: str | None
    listing_digest: str
    created_by: str
    fingerprint: str

    def shard_paths(self, split: str) -> list[str]:
        """Paths of a split's TFRecord shards, in order; some may be empty files.

        Raises:
            InputError: the split is none of train, val and test.
        """
        return [posixpath.join(self.data, shard_name(split, index, self.shards)) for index in range(self.shards)]

    def count(self, split: str) -> int:
        """Images in a split.

        Raises:
            InputError: the split is none of train, val and test.
        """
        _check_split(split)
        return sum(self.counts[split].values())

    def to_json(self) -> str:
        """The text of ``dataset.json``; the folder's own place is not part of it."""
        values = dataclasses.asdict(self)
        del values["data"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, data: str, text: str | bytes) -> DatasetInfo:
        """Read the text of the ``dataset.json`` in the folder ``data``; keys that are unknown are ignored.

        Raises:
            InputError: the text is damaged or lacks a key.
        """
        try:
            values: dict[str, Any] = {**json.loads(text), "data": data}
            fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            train, val, test = (float(share) for share in fields["split"])
            fields.update(classes=tuple(fields["classes"]), split=(train, val, test))
            if set(fields["counts"]) != set(SPLITS):
                raise ValueError("counts")
            return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{posixpath.join(data, DATASET_FILE)} is damaged: {error}") from error


def shard_name(split: str, index: int, shards: int) -> str:
    """Path of a shard within the data folder, such as ``train/train-00003-of-00016.tfrecord``.

    Raises:
        InputError: the split is none of train, val and test.
    """
    _check_split(split)
    return f"{split}/{split}-{index:05d}-of-{shards:05d}.tfrecord"


def read_dataset(data: str) -> DatasetInfo:
    """Read ``dataset.json`` of prepared data in a local folder.

    Raises:
        InputError: it is not there (the data is not prepared, or the preparation was cut off), or is damaged.
    """
    path = posixpath.join(data, DATASET_FILE)
    try:
        with open(path, "rb") as stream:
            return DatasetInfo.from_json(data, stream.read())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no prepared data at {data}: run python -m jobs.prepare first (no {path})") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"{split!r} is no split; there are {', '.join(SPLITS)}")
