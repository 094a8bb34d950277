"""The steps of a preparation as plain functions: check an image, judge its copies, write a shard, sum up.

The bytes of an image are read where they are checked, and again where they are written; only references to images,
and what was found of them, travel between the steps.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from model.dataset_info import DATASET_FILE, REJECTED_FILE, SPLITS, DatasetInfo, shard_name
from model.errors import InputError
from model.preprocess import DecodeError, decode_image
from model.spec import fingerprint
from pipelines import storage, tfrecord
from pipelines.data_folder import atomic_writer
from pipelines.preparation_progress import TALLY
from pipelines.source import Listing, SourceImage, read_image

READ_AHEAD = 8
"""Images that a shard's writer holds in memory at once."""

MAXIMUM_SHARDS = 10_000

ShardKey = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class PreparationConfig:
    """What to prepare, and how.

    Attributes:
        source: see :func:`pipelines.source.locate_source`.
        out: local folder for the shards and ``dataset.json``.
        split: positive parts of train, val and test, of any sum; kept as shares of sum 1.
        seed: of the split; another seed deals the images out anew.
        shards: TFRecord files per split, 1 to 10,000.
        sha256: expected SHA-256 (hexadecimal) of the source archive.
        overwrite: replace finished data that lies in ``out``.
    """

    source: str
    out: str
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seed: int = 0
    shards: int = 16
    sha256: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if len(self.split) != 3 or not all(math.isfinite(part) and part > 0 for part in self.split):
            raise InputError(f"--split takes three positive numbers such as 60/20/20, not {self.split}")
        total = sum(self.split)
        # Shares stay as they are: 0.7, 0.2 and 0.1 do not add up to 1 exactly, and divided again they would be others.
        if not math.isclose(total, 1.0):
            train, val, test = (part / total for part in self.split)
            object.__setattr__(self, "split", (train, val, test))
        if not 1 <= self.shards <= MAXIMUM_SHARDS:
            raise InputError(f"--shards {self.shards} is not in [1, {MAXIMUM_SHARDS}]")
        if storage.is_remote(self.out):
            raise InputError(f"prepare writes to a local folder, not to {self.out}: copy the finished folder there")


@dataclasses.dataclass(frozen=True, slots=True)
class ImageMetadata:
    """What checking found of a good image.

    Attributes:
        image: the reference to it.
        sha256: SHA-256 (hexadecimal) of its file.
        format: JPEG, PNG, ... as Pillow names it.
        width, height: in pixels, upright.
    """

    image: SourceImage
    sha256: str
    format: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """An image that does not get into the shards; ``code`` is a short and stable name of the reason's kind."""

    filename: str
    class_name: str
    code: str
    reason: str
    sha256: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ShardReport:
    """What a written shard holds: the rows are (sha256, class, width, height) in the shard's order."""

    split: str
    rows: tuple[tuple[str, str, int, int], ...]
    rejections: tuple[Rejection, ...]


Outcome = ImageMetadata | Rejection


def parse_split(text: str) -> tuple[float, float, float]:
    """Read a split such as ``70/20/10``.

    Raises:
        InputError: the text is not three numbers with slashes between.
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise InputError(f"--split takes three positive numbers such as 60/20/20, not {text!r}") from None
    return train, val, test


def assign(sha256: str, config: PreparationConfig) -> ShardKey:
    """The split and the index of the shard that an image falls into, by its content and the seed alone.

    No other image plays a part, so that adding images moves none, and byte-identical images stay together.
    """
    digest = hashlib.sha256(f"{config.seed}:{sha256}".encode()).digest()
    # 53 bits are what a float holds exactly: with more, the greatest would round to 1.
    place = (int.from_bytes(digest[:8]) >> 11) / 2**53
    train, val, _ = config.split
    split = SPLITS[0] if place < train else SPLITS[1] if place < train + val else SPLITS[2]
    return split, int.from_bytes(digest[8:16]) % config.shards


def check_chunk(path: str) -> Iterator[Outcome]:
    """Check the images that a chunk of the plan names."""
    images = [SourceImage(*entry) for entry in json.loads(storage.read_bytes(path))]
    with ThreadPoolExecutor(_threads()) as pool:
        yield from pool.map(check_image, images)


def check_image(image: SourceImage) -> Outcome:
    """Read an image, decode it wholly, and take its SHA-256; why it fails becomes a rejection, never an exception."""
    try:
        encoded = read_image(image)
        width, height = decode_image(encoded).size
        return ImageMetadata(image, hashlib.sha256(encoded).hexdigest(), _image_format(encoded), width, height)
    except DecodeError as error:
        return _reject(image, error.code, str(error))
    except OSError as error:
        return _reject(image, "unreadable", error.strerror or str(error))
    finally:
        TALLY.add(checked=1)


def is_good(outcome: Outcome) -> bool:
    """Whether a check's outcome is a good image."""
    return isinstance(outcome, ImageMetadata)


def is_rejection(outcome: Outcome) -> bool:
    """Whether a check's outcome is a rejection."""
    return isinstance(outcome, Rejection)


def by_content(metadata: ImageMetadata) -> tuple[str, ImageMetadata]:
    """Key an image by the SHA-256 of its bytes."""
    return metadata.sha256, metadata


def by_shard(metadata: ImageMetadata, config: PreparationConfig) -> tuple[ShardKey, ImageMetadata]:
    """Key an image by the shard that it falls into."""
    return assign(metadata.sha256, config), metadata


def judge_copies(group: tuple[str, Iterable[ImageMetadata]]) -> Iterator[Outcome]:
    """Pass byte-identical images of one class on, and reject all of them where they bear different labels."""
    copies = sorted(group[1], key=_order)
    if len({copy.image.class_name for copy in copies}) == 1:
        yield from copies
        return
    for copy in copies:
        other = next(each.image for each in copies if each.image.class_name != copy.image.class_name)
        reason = f"same bytes as {other.filename}, which is labelled {other.class_name}"
        yield _reject(copy.image, "conflict", reason, copy.sha256)


def write_shard(
    group: tuple[ShardKey, dict[str, Iterable[ImageMetadata]]], config: PreparationConfig, classes: Sequence[str]
) -> ShardReport:
    """Write one shard, by SHA-256 and filename, from images that are read again.

    An image whose bytes are not those that were checked is rejected.

    Args:
        group: the shard's key, and its images under ``images``.
        config: of the preparation.
        classes: sorted names; the label is an index into them.
    """
    (split, index), found = group
    rows: list[tuple[str, str, int, int]] = []
    rejections: list[Rejection] = []
    remaining = iter(sorted(found["images"], key=_order))
    with (
        ThreadPoolExecutor(_threads()) as pool,
        atomic_writer(config.out, shard_name(split, index, config.shards)) as stream,
    ):
        while batch := list(itertools.islice(remaining, READ_AHEAD)):
            for metadata, encoded in zip(batch, pool.map(read_again, batch), strict=True):
                if isinstance(encoded, Rejection):
                    rejections.append(encoded)
                    continue
                stream.write(tfrecord.frame(encode_image(metadata, encoded, classes)))
                rows.append((metadata.sha256, metadata.image.class_name, metadata.width, metadata.height))
    TALLY.add(shards=1)
    return ShardReport(split, tuple(rows), tuple(rejections))


def read_again(metadata: ImageMetadata) -> bytes | Rejection:
    """The bytes of a checked image, or a rejection where they are others now."""
    try:
        encoded = read_image(metadata.image)
    except OSError as error:
        return _reject(metadata.image, "unreadable", error.strerror or str(error))
    if hashlib.sha256(encoded).hexdigest() != metadata.sha256:
        return _reject(metadata.image, "changed", "the file changed while it was being prepared")
    return encoded


def encode_image(metadata: ImageMetadata, encoded: bytes, classes: Sequence[str]) -> bytes:
    """The serialised tf.train.Example of an image, with the bytes of its file unchanged."""
    return tfrecord.encode_example(
        {
            "image/encoded": encoded,
            "image/format": metadata.format,
            "image/class/label": classes.index(metadata.image.class_name),
            "image/class/text": metadata.image.class_name,
            "image/filename": metadata.image.filename,
            "image/sha256": metadata.sha256,
            "image/width": metadata.width,
            "image/height": metadata.height,
        }
    )


def finish(
    _: None,
    reports: Sequence[ShardReport],
    rejections: Sequence[Rejection],
    config: PreparationConfig,
    summary: Listing,
) -> None:
    """Write ``rejected.jsonl`` and then ``dataset.json``, the sign that the data is whole.

    Where no image was kept, ``dataset.json`` is not written.
    """
    late = itertools.chain.from_iterable(report.rejections for report in reports)
    rejected = sorted((*rejections, *late), key=lambda each: each.filename)
    lines = [
        {"filename": each.filename, "class": each.class_name, "code": each.code, "reason": each.reason}
        for each in rejected
    ]
    with atomic_writer(config.out, REJECTED_FILE) as stream:
        stream.writelines(f"{json.dumps(line, ensure_ascii=False)}\n".encode() for line in lines)
    if any(report.rows for report in reports):
        info = summarise(reports, rejected, config, summary)
        with atomic_writer(config.out, DATASET_FILE) as stream:
            stream.write(info.to_json().encode())


def summarise(
    reports: Sequence[ShardReport], rejected: Sequence[Rejection], config: PreparationConfig, summary: Listing
) -> DatasetInfo:
    """Everything that ``dataset.json`` says, from the reports of the shards (one image or more in all)."""
    counts = {split: dict.fromkeys(summary.classes, 0) for split in SPLITS}
    for report in reports:
        for _, class_name, _, _ in report.rows:
            counts[report.split][class_name] += 1
    rows = sorted(row for report in reports for row in report.rows)
    copies = [count for count in Counter(sha256 for sha256, *_ in rows).values() if count > 1]
    conflicts = [each.sha256 for each in rejected if each.code == "conflict"]
    content = {
        "images": [(sha256, class_name) for sha256, class_name, _, _ in rows],
        "split": config.split,
        "seed": config.seed,
    }
    return DatasetInfo(
        data=config.out,
        classes=summary.classes,
        counts=counts,
        split=config.split,
        seed=config.seed,
        shards=config.shards,
        duplicates={"groups": len(copies), "surplus_files": sum(copies) - len(copies)},
        conflicts={"groups": len(set(conflicts)), "files": len(conflicts)},
        rejected=len(rejected),
        skipped=summary.skipped,
        dimensions={**_range("width", [row[2] for row in rows]), **_range("height", [row[3] for row in rows])},
        source=summary.location.source,
        source_sha256=summary.location.archive_sha256,
        listing_digest=summary.digest,
        created_by=f"crackscan {_version()}",
        fingerprint=fingerprint(content),
    )


def _reject(image: SourceImage, code: str, reason: str, sha256: str = "") -> Rejection:
    return Rejection(image.filename, image.class_name, code, " ".join(reason.split()), sha256)


def _order(metadata: ImageMetadata) -> tuple[str, str]:
    return metadata.sha256, metadata.image.filename


def _image_format(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        # Phones write MPO, a JPEG with more pictures behind it; every reader sees a JPEG.
        return "JPEG" if image.format == "MPO" else str(image.format)


def _range(name: str, values: Sequence[int]) -> dict[str, float]:
    mean = round(sum(values) / len(values), 3)
    return {f"mean_{name}": mean, f"minimum_{name}": min(values), f"maximum_{name}": max(values)}


@functools.cache
def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version() -> str:
    try:
        return importlib.metadata.version("crackscan")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
