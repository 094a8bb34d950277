"""Iterate the images of a tar, in WebDataset's layout or any other, as :mod:`pipelines.shards` says.

WebDataset's format: https://github.com/webdataset/webdataset#the-webdataset-format
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

from pipelines import storage
from pipelines.records import Failure, ImageRecord, ShardError
from pipelines.shards import (
    MAX_IMAGE_BYTES,
    UniqueNames,
    is_image_name,
    printable,
    resolve_label,
    shard_errors,
)

_TAR_LABELS = ("label", "class", "cls")
_MAX_LABEL_BYTES = 2**20
_MAX_SAMPLE_IMAGES = 16
# tarfile copies the rest of its buffer at every read, so a large one is slow.
_BUFFER_BYTES = 2**14


class _TarInfo(tarfile.TarInfo):
    """Tells the end of an archive from a cut or a damaged header, which tarfile takes for the end in silence."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _TarInfo:
        checked = cast(_TarFile, archive)
        try:
            info = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            # Its subclasses are no public names of the module.
            kind = type(error).__name__
            if kind == "EOFHeaderError":
                checked.ended = True
            elif kind == "TruncatedHeaderError" or (kind == "EmptyHeaderError" and not checked.ended):
                raise ShardError("truncated", f"the tar ends at byte {archive.offset} without its end mark") from error
            elif kind != "EmptyHeaderError":
                raise ShardError("corrupt", f"no tar header at byte {archive.offset}: {error}") from error
            raise
        checked.ended = False
        return info


class _TarFile(tarfile.TarFile):
    tarinfo = _TarInfo
    members: list[tarfile.TarInfo]
    ended = False


def _decompress(stream: BinaryIO) -> BinaryIO:
    # The modules, unlike tarfile's stream mode, verify checksums and read files of several members to their end.
    magic = stream.read(6)
    stream.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(stream))
    if magic == b"\xfd7zXZ\x00":
        return cast(BinaryIO, lzma.LZMAFile(stream))
    return stream


def _tar_members(path: str, source: str) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Members that may be images or labels, with their data where they are plain files of a sensible size."""
    with shard_errors(source), storage.open_input(path) as stream:
        try:
            # Archives that were joined with ``cat`` are read to their end (ignore_zeros).
            with _TarFile.open(
                fileobj=_decompress(stream), mode="r|", bufsize=_BUFFER_BYTES, ignore_zeros=True, encoding="utf-8"
            ) as archive:
                while (member := archive.next()) is not None:
                    # A tar of a million files must not leave a million headers in memory.
                    archive.members = []
                    if member.isdir():
                        continue
                    limit = MAX_IMAGE_BYTES if is_image_name(member.name) else _MAX_LABEL_BYTES
                    content = archive.extractfile(member) if member.isreg() and member.size <= limit else None
                    yield member, content.read() if content else None
        except (tarfile.TarError, ValueError) as error:
            code = "truncated" if "unexpected end" in str(error) else "corrupt"
            raise ShardError(code, str(error)) from error


@dataclasses.dataclass(slots=True)
class _Sample:
    """Consecutive members of a tar that share a key: the images wait for the label that may follow them."""

    key: str | None = None
    images: list[ImageRecord | Failure] = dataclasses.field(default_factory=list)
    label: str | None = None

    def flush(self) -> Iterator[ImageRecord | Failure]:
        images, self.images = self.images, []
        for image in images:
            yield image if isinstance(image, Failure) else dataclasses.replace(image, label=self.label)


def read_tar(path: str, source: str, classes: Sequence[str]) -> Iterator[ImageRecord | Failure]:
    """The images of a tar, plain or compressed (gzip, bzip2, xz), without extracting it to disk.

    Consecutive files with the same path up to the first dot of the base name are one WebDataset sample: ``.cls`` (a
    class index or name) or ``.json`` (key ``label``, ``class`` or ``cls``) labels its images. The id is
    ``source/member``. Hidden files are left out; an image that is a link (``link``) or larger than 256 MiB
    (``too-large``) is a Failure.

    Raises:
        ShardError: see :mod:`pipelines.shards`; also where the end mark is missing, or other data follows it.
    """
    unique = UniqueNames()
    sample = _Sample()
    position = 0
    try:
        for member, data in _tar_members(path, source):
            name = printable(member.name).removeprefix("./")
            folder, base = posixpath.split(name)
            if base.startswith("."):
                continue
            key = posixpath.join(folder, base.split(".", 1)[0])
            if key != sample.key or len(sample.images) >= _MAX_SAMPLE_IMAGES:
                yield from sample.flush()
                sample = _Sample(key, label=sample.label if key == sample.key else None)
            if is_image_name(base):
                image_id = unique.make(f"{source}/{name}", position)
                if data is not None:
                    sample.images.append(ImageRecord(image_id, source, position, data))
                else:
                    code, message = (
                        ("too-large", "more than 256 MiB") if member.isreg() else ("link", "not a plain file")
                    )
                    sample.images.append(Failure(image_id, source, position, "read", code, message))
                position += 1
            elif data is not None and base.lower().endswith(".cls"):
                sample.label = resolve_label(data, classes)
            elif data is not None and base.lower().endswith(".json") and sample.label is None:
                sample.label = _json_label(data, classes)
    except ShardError:
        yield from sample.flush()
        raise
    yield from sample.flush()


def _json_label(data: bytes, classes: Sequence[str]) -> str | None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    labels = (resolve_label(values.get(key), classes) for key in _TAR_LABELS)
    return next((label for label in labels if label is not None), None)
