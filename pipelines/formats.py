"""Find the files of an input and tell their format, by their names and by the content of the first."""

from __future__ import annotations

import bz2
import dataclasses
import lzma
import os
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping

from model.errors import InputError
from pipelines import storage, tfrecord
from pipelines.manifest import first_line, is_manifest_header
from pipelines.shards import is_image_name

FORMATS = ("folder", "tfrecord", "tar", "parquet", "manifest")

_NAMES = (
    ("tar", re.compile(r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2?|txz)$")),
    ("tfrecord", re.compile(r"\.(tfrecords?|tfrec|tfr)(\.gz)?$|\.tfrecords?[-_.]")),
    ("parquet", re.compile(r"\.(parquet|pq)$")),
    ("manifest", re.compile(r"\.(csv|tsv|tab|jsonl|ndjson)$")),
)
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*")
_HEAD_BYTES = 64 * 1024
_MAX_OPENED = 16


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of an input.

    Attributes:
        root: the folder, absolute or a URL, that ids and sources are relative to.
        format: one of :data:`FORMATS`.
        files: sorted by path.
        skipped: numbers of the other files that were found, by extension; they are not read.
    """

    root: str
    format: str
    files: tuple[storage.FileInfo, ...]
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)


def relative(path: str, root: str) -> str:
    """A listed path relative to the root that it was listed under."""
    return path[len(root) :].lstrip("/")


def format_by_name(path: str) -> str | None:
    """The format that a file's name stands for; None where it stands for none."""
    name = storage.base_name(path).lower()
    if is_image_name(name):
        return "folder"
    return next((kind for kind, pattern in _NAMES if pattern.search(name)), None)


def format_of_content(head: bytes, path_column: str | None = None) -> str | None:
    """The format that the first bytes of a file (64 KiB are plenty) belong to; None where it is none of them."""
    # TFRecord first: its checksum cannot be there by chance.
    if tfrecord.is_record_header(head):
        return "tfrecord"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(_IMAGE_MAGIC) or head[8:12] == b"WEBP" or (head[:2] == b"BM" and head[6:10] == bytes(4)):
        return "folder"
    if (inner := _decompress_head(head)) is not None:
        found = format_of_content(inner, path_column)
        return found if found in ("tar", "tfrecord") else None
    if len(head) >= tarfile.BLOCKSIZE:
        block = head[: tarfile.BLOCKSIZE]
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            return "tar"
        except tarfile.HeaderError:
            if not any(block):
                return "tar"
    return "manifest" if is_manifest_header(first_line(head), path_column) else None


def _decompress_head(head: bytes) -> bytes | None:
    try:
        if head.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(head, 4096)
        if head.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(head, 4096)
        if head.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMADecompressor().decompress(head, 4096)
    except (zlib.error, lzma.LZMAError, OSError):
        return b""
    return None


def detect_format(path: str, path_column: str | None = None) -> str:
    """The format of one file, or of a folder's files; content decides over the name.

    Raises:
        InputError: it is none of :data:`FORMATS`, cannot be read, or a folder holds several.
    """
    return list_input(path, "auto", path_column).format


def list_input(pattern: str, wanted: str = "auto", path_column: str | None = None) -> Listing:
    """The files of an input that belong to its one format; other files beside them (a license, ``dataset.json``, a CSV
    beside shards or images) are left out.

    Names tell the format, and of shards the content of the first file: it decides where the two differ. Files whose
    names say nothing (``train-00000-of-00128``) are grouped by their names without digits, and the first of each group
    is opened. So ten thousand shards cost one or two opened files; a shard that is no such file shows when it is read.

    Args:
        pattern: a file, a folder, or a glob pattern; local or in a bucket.
        wanted: one of :data:`FORMATS`, or ``auto``.
        path_column: column of the image paths, where the input may be a manifest.

    Raises:
        InputError: nothing is there, nothing usable is there, or formats are mixed.
    """
    if wanted not in (*FORMATS, "auto"):
        raise InputError(f"the format is one of auto, {', '.join(FORMATS)}, not {wanted!r}")
    pattern = _absolute(pattern)
    files = storage.list_files(pattern)
    root = _root(pattern)
    if storage.is_remote(pattern) and root == pattern:
        hidden = re.compile(r"(^|/)[._]")
        files = [file for file in files if not hidden.search(relative(file.path, root))]
    groups: dict[str, list[storage.FileInfo]] = {}
    unnamed = []
    for file in files:
        kind = format_by_name(file.path)
        if kind is None:
            unnamed.append(file)
        else:
            groups.setdefault(kind, []).append(file)
    if wanted != "auto":
        chosen = groups.get(wanted) or (_unnamed(unnamed, path_column).get(wanted) if wanted != "folder" else None)
        if not chosen and files[0].path == pattern:
            chosen = files
        if not chosen:
            raise InputError(f"no {wanted} files at {pattern}; found {_examples(files)}")
        return Listing(root, wanted, tuple(chosen), _skipped(files, chosen))
    for kind in [kind for kind in groups if kind != "folder"]:
        actual = _content_of_first(groups[kind], path_column)
        if actual not in (None, "folder", kind):
            groups.setdefault(actual, []).extend(groups.pop(kind))
    if not set(groups) - {"manifest"}:
        for kind, found in _unnamed(unnamed, path_column).items():
            groups.setdefault(kind, []).extend(found)
    if len(groups) > 1:
        groups.pop("manifest", None)
    if len(groups) > 1:
        counts = ", ".join(f"{len(found)} {kind} ({_examples(found[:1])})" for kind, found in sorted(groups.items()))
        raise InputError(f"several formats at {pattern}: {counts}; name one with --format or a narrower pattern")
    if not groups:
        raise InputError(
            f"nothing at {pattern} is of a format that is read (JPEG, PNG, TIFF, WebP, BMP, GIF, TFRecord, tar, "
            f"Parquet, CSV, JSONL); found {_examples(files)}"
        )
    kind, found = groups.popitem()
    return Listing(root, kind, tuple(sorted(found)), _skipped(files, found))


def _absolute(pattern: str) -> str:
    if storage.is_remote(pattern):
        scheme, _, rest = pattern.partition("://")
        return f"{scheme}://{rest.rstrip('/')}"
    # A link followed by ``..`` leads elsewhere than the normalised path.
    return posixpath.join(os.getcwd(), pattern) if ".." in pattern.split("/") else os.path.abspath(pattern)


def _root(pattern: str) -> str:
    if storage.is_remote(pattern):
        scheme, _, inner = pattern.partition("://")
        literal = not storage.GLOB_CHARACTERS & set(inner)
    else:
        scheme, inner, literal = "", pattern, storage.exists(pattern)
    if literal:
        return pattern if storage.is_directory(pattern) else posixpath.dirname(pattern)
    parts = inner.split("/")
    fixed = next(index for index, part in enumerate(parts) if storage.GLOB_CHARACTERS & set(part))
    prefix = "/".join(parts[:fixed])
    return f"{scheme}://{prefix}" if scheme else prefix or "/"


def _content(file: storage.FileInfo, path_column: str | None) -> str | None:
    try:
        return format_of_content(storage.read_range(file.path, 0, _HEAD_BYTES), path_column)
    except OSError:
        return None


def _content_of_first(files: list[storage.FileInfo], path_column: str | None) -> str | None:
    first = next((file for file in files if file.size), None)
    return _content(first, path_column) if first else None


def _unnamed(files: list[storage.FileInfo], path_column: str | None) -> dict[str, list[storage.FileInfo]]:
    """Files whose names tell nothing, by the content of the first of each group of like names."""
    alike: dict[str, list[storage.FileInfo]] = {}
    for file in files:
        alike.setdefault(re.sub(r"\d+", "#", storage.base_name(file.path)), []).append(file)
    found: dict[str, list[storage.FileInfo]] = {}
    largest = sorted(alike.values(), key=len, reverse=True)
    for group in largest[:_MAX_OPENED]:
        kind = _content_of_first(group, path_column)
        # Images count by their names only: a temporary copy beside them is none.
        if kind not in (None, "folder"):
            found.setdefault(kind, []).extend(group)
    return found


def _skipped(files: list[storage.FileInfo], chosen: list[storage.FileInfo]) -> dict[str, int]:
    used = set(chosen)
    kinds = Counter(
        posixpath.splitext(file.path)[1].lower() or storage.base_name(file.path) for file in files if file not in used
    )
    return dict(sorted(kinds.items()))


def _examples(files: list[storage.FileInfo]) -> str:
    if len(files) == 1:
        return storage.base_name(files[0].path)
    kinds = Counter(posixpath.splitext(file.path)[1] or storage.base_name(file.path) for file in files)
    return f"{len(files)} files ({', '.join(f'{kind} x {count}' for kind, count in kinds.most_common(5))})"
