"""Iterate the images of files and of a TFRecord; what all readers of shards share.

Every reader, also those of :mod:`pipelines.tar` and :mod:`pipelines.parquet`, is a generator in the shard's own order
that holds a few images at a time, whatever the shard's size. It yields an :class:`ImageRecord` per image, or a
:class:`Failure` for a single image that cannot be read, and raises :class:`ShardError` where the shard itself ends too
early (``truncated``), is damaged (``corrupt``), is gone (``missing``) or cannot be read (``forbidden``,
``unreadable``), after the images before that place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import lzma
import os
import posixpath
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipelines import storage, tfrecord
from pipelines.records import Failure, ImageRecord, ShardError

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "image/class/text", "image/class/label")
MAX_IMAGE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class FileEntry:
    """An image file of a folder or manifest: where it lies, and what an :class:`ImageRecord` says of it."""

    path: str
    image_id: str
    source: str
    label: str | None = None


class UniqueNames:
    """Gives every name once: a name that was there before gets ``#position`` at its end."""

    def __init__(self) -> None:
        # Digests take half the memory of the names; a collision only adds a suffix.
        self._seen: set[bytes] = set()

    def make(self, name: str, position: int) -> str:
        """The name itself, or with a suffix that makes it unlike all earlier ones; equal input gives equal names."""
        while (digest := hashlib.blake2b(name.encode(), digest_size=8).digest()) in self._seen:
            name = f"{name}#{position}"
        self._seen.add(digest)
        return name


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's, in any case."""
    return posixpath.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def printable(name: str) -> str:
    r"""A file name as valid Unicode: bytes that are no UTF-8 become ``\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def resolve_label(value: object, classes: Sequence[str]) -> str | None:
    """The class name that a stored label means.

    A text is a class name; where it is none of ``classes`` but an index into them, that class. A whole number is an
    index, out of range (-1 is common) no label. A text that is neither is kept: the caller sees an unknown class.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else None
    if not isinstance(value, str) or not (text := value.strip()):
        return None
    if text not in classes and text.isdecimal() and int(text) < len(classes):
        return classes[int(text)]
    return text


@contextlib.contextmanager
def shard_errors(source: str) -> Iterator[None]:
    """Turn what reading a shard may raise into a ShardError that names it."""
    try:
        yield
    except ShardError as error:
        raise ShardError(error.code, f"{source}: {error}") from error
    except EOFError as error:
        raise ShardError("truncated", f"{source}: the compressed file ends too early") from error
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ShardError("corrupt", f"{source}: cannot decompress: {error}") from error
    except OSError as error:
        raise ShardError(_os_code(error), f"{source}: {error.strerror or error}") from error


def _os_code(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "forbidden"
    # Decompressors and Arrow report damage as an OSError without a number.
    return "unreadable" if error.errno or isinstance(error, TimeoutError | ConnectionError) else "corrupt"


def read_files(entries: Iterable[FileEntry], first: int = 0) -> Iterator[ImageRecord | Failure]:
    """The images of single files, in the order given; a file that is gone or unreadable is a Failure.

    An empty file is a record of no bytes: the decoder refuses it. More than 256 MiB is a Failure (``too-large``), and
    so is what is no regular file (``not-a-file``): reading a pipe would wait for ever.

    Args:
        entries: the files.
        first: position of the first of them.
    """
    for position, entry in enumerate(entries, start=first):
        if not storage.is_remote(entry.path) and os.path.exists(entry.path) and not os.path.isfile(entry.path):
            yield Failure(entry.image_id, entry.source, position, "read", "not-a-file", "no regular file")
            continue
        try:
            with storage.open_input(entry.path) as stream:
                encoded = stream.read(MAX_IMAGE_BYTES + 1)
        except (OSError, ValueError) as error:
            code = _os_code(error) if isinstance(error, OSError) and error.errno else "unreadable"
            reason = getattr(error, "strerror", None) or error
            yield Failure(entry.image_id, entry.source, position, "read", code, f"cannot read: {reason}")
            continue
        if len(encoded) > MAX_IMAGE_BYTES:
            yield Failure(entry.image_id, entry.source, position, "read", "too-large", "more than 256 MiB")
        else:
            yield ImageRecord(entry.image_id, entry.source, position, encoded, entry.label)


def read_tfrecord(path: str, source: str, classes: Sequence[str]) -> Iterator[ImageRecord | Failure]:
    """The images of a TFRecord of ``tf.train.Example`` with the usual keys (``image/encoded`` and others).

    The id is ``source/filename``, or ``source#position`` without ``image/filename``. The label is
    ``image/class/text``, else ``image/class/label`` as an index into ``classes``. A record that is no Example
    (``bad-record``) or holds no image (``no-image``) is a Failure.

    Raises:
        ShardError: see the module.
    """
    unique = UniqueNames()
    with shard_errors(source), storage.open_input(path) as stream:
        for position, data in enumerate(tfrecord.read_records(stream)):
            try:
                features = tfrecord.decode_example(data)
            except ValueError as error:
                image_id = unique.make(f"{source}#{position}", position)
                yield Failure(image_id, source, position, "read", "bad-record", str(error))
                continue
            filename = _first(features, tfrecord.IMAGE_FILENAME)
            name = f"/{filename.decode('utf-8', 'backslashreplace')}" if isinstance(filename, bytes) else f"#{position}"
            image_id = unique.make(source + name, position)
            encoded = _first(features, tfrecord.IMAGE_ENCODED)
            if not isinstance(encoded, bytes):
                message = (
                    f"no bytes in {tfrecord.IMAGE_ENCODED}; the record has: {', '.join(sorted(features)) or 'nothing'}"
                )
                yield Failure(image_id, source, position, "read", "no-image", message)
                continue
            label = resolve_label(_first(features, tfrecord.IMAGE_TEXT), classes)
            if label is None:
                label = resolve_label(_first(features, tfrecord.IMAGE_LABEL), classes)
            yield ImageRecord(image_id, source, position, encoded, label)


def _first(features: dict[str, Any], key: str) -> object:
    values = features.get(key)
    return values[0] if values else None
