"""One face for local paths and buckets: list, read, atomic put, put-if-absent.

A local put is a file written under a temporary name, synced and renamed; on an object store a single put is atomic by
itself. Buckets (``gs://`` and others) go through :mod:`pipelines.buckets`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from model.errors import InputError
from pipelines import buckets

Result = TypeVar("Result")

GLOB_CHARACTERS = buckets.GLOB_CHARACTERS
COPY_BYTES = 4 * 2**20


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """A file as a listing gives it: its path and its size in bytes, in a bucket also a tag of its content."""

    path: str
    size: int
    tag: str = ""


def is_remote(path: str) -> bool:
    """Whether a path names an object store (``scheme://...``) rather than a local file."""
    return "://" in path


def join(base: str, *parts: str) -> str:
    """Join path segments with forward slashes, for local paths and buckets alike."""
    return posixpath.join(base, *parts)


def base_name(path: str) -> str:
    """The last segment of a path."""
    return posixpath.basename(path.rstrip("/"))


def absolute(path: str) -> str:
    """A path that means the same in every process: absolute, or a URL, without a slash at its end."""
    if not is_remote(path):
        return os.path.abspath(path)
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{rest.rstrip('/')}"


def open_input(path: str) -> BinaryIO:
    """Open a file for reading as a stream of bytes; of an object store, some MiB of it are in memory at a time.

    Raises:
        FileNotFoundError, OSError: it is not there or cannot be read.
        InputError: the driver of the path's scheme is not installed, or the store asks for credentials.
    """
    return buckets.open_input(path) if is_remote(path) else open(path, "rb")


def read_bytes(path: str) -> bytes:
    """The whole content of a file; raises as :func:`open_input`."""
    if is_remote(path):
        return buckets.read_range(path)
    with open_input(path) as stream:
        return stream.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """``length`` bytes of a file from ``offset``, fewer at its end; raises as :func:`open_input`."""
    if is_remote(path):
        return buckets.read_range(path, offset, length)
    with open_input(path) as stream:
        stream.seek(offset)
        return stream.read(length)


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    return buckets.exists(path) if is_remote(path) else os.path.exists(path)


def is_directory(path: str) -> bool:
    """Whether a path is a folder (on an object store: a prefix of some object)."""
    return buckets.is_directory(path) if is_remote(path) else os.path.isdir(path)


def list_entries(directory: str) -> list[str]:
    """Names of the files and folders directly inside a folder, sorted; empty where the folder is not there.

    Raises:
        OSError: it is a file, or cannot be read.
    """
    if is_remote(directory):
        return sorted(buckets.entries(directory))
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def list_names(directory: str) -> list[str]:
    """Names of the files directly inside a folder, sorted; empty where the folder is not there."""
    if is_remote(directory):
        return sorted(name for name, is_file in buckets.entries(directory).items() if is_file)
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except FileNotFoundError:
        return []


def list_files(pattern: str) -> list[FileInfo]:
    """The files that a path, a glob pattern or a folder (with all its subfolders) names, sorted by path.

    Hidden files and folders, whose names begin with a dot or an underscore, are left out of local folders. Links to
    folders are followed once each, so that a link to a parent ends the walk rather than going round for ever.

    Raises:
        InputError: nothing is there, or it cannot be listed.
    """
    if is_remote(pattern):
        found = _list_remote(pattern)
    elif os.path.isdir(pattern):
        found = list(_walk(pattern))
    elif os.path.exists(pattern):
        found = [_file_info(pattern)]
    else:
        found = []
        for path in glob.glob(pattern, recursive=True):
            found.extend(_walk(path) if os.path.isdir(path) else [_file_info(path)])
    if not found:
        raise InputError(f"no file found at {pattern}")
    return sorted(set(found))


def _walk(directory: str) -> Iterator[FileInfo]:
    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename}: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(directory, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "_"))]
        for name in names:
            if name.startswith((".", "_")):
                continue
            yield _file_info(os.path.join(folder, name))


def _file_info(path: str) -> FileInfo:
    try:
        return FileInfo(path, os.stat(path).st_size)
    except OSError:
        # A dangling link: listed, so that reading it becomes a failure that is counted, not a silent gap.
        return FileInfo(path, 0)


def _list_remote(pattern: str) -> list[FileInfo]:
    try:
        return [FileInfo(*entry) for entry in buckets.listing(pattern)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot list {pattern}: {error.strerror}") from error


def make_directory(path: str) -> None:
    """Make a local folder and its parents; on an object store there is nothing to make.

    Raises:
        InputError: it cannot be made.
    """
    if is_remote(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error


def put(path: str, data: bytes, temporary: str | None = None) -> None:
    """Write a file whole or not at all; a reader never sees a part of it, also when the process dies here.

    Args:
        path: where it goes; its folder is made.
        data: its content.
        temporary: local folder, on the same file system, for the unfinished file; the file's own folder by default.

    Raises:
        OSError: it cannot be written (no space, no permission).
    """
    if is_remote(path):
        buckets.put(path, data)
        return
    with _unfinished(path, temporary) as stream:
        stream.write(data)


@contextlib.contextmanager
def writer(path: str, temporary: str | None = None) -> Iterator[BinaryIO]:
    """A stream into a file that appears whole when the block ends, and not at all on an error; otherwise as `put`.

    An object is written to a local temporary file first: a driver's own stream would keep half of it on an error.
    """
    if not is_remote(path):
        with _unfinished(path, temporary) as stream:
            yield stream
        return
    with tempfile.NamedTemporaryFile(prefix="crackscan-") as local:
        yield cast(BinaryIO, local)
        local.flush()
        buckets.upload(local.name, path)


def copy(source: str, target: str) -> None:
    """Copy a file between any two places; the copy appears whole.

    Raises:
        OSError: one cannot be read or the other written.
    """
    if is_remote(target) and not is_remote(source):
        buckets.upload(source, target)
        return
    with open_input(source) as stream, writer(target) as sink:
        shutil.copyfileobj(stream, sink, COPY_BYTES)


@contextlib.contextmanager
def _unfinished(path: str, temporary: str | None) -> Iterator[BinaryIO]:
    """A stream into a file under another name, synced and renamed when the block ends, removed on an error."""
    folder = os.path.dirname(path)
    unfinished = os.path.join(temporary or folder, f".{uuid.uuid4().hex}.tmp")
    try:
        with _with_folder(os.path.dirname(unfinished), lambda: open(unfinished, "wb")) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _with_folder(folder, lambda: os.replace(unfinished, path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def _with_folder(folder: str, act: Callable[[], Result]) -> Result:
    # The folder is there nearly always: asking first would double the calls for every part of a run.
    try:
        return act()
    except FileNotFoundError:
        os.makedirs(folder or ".", exist_ok=True)
        return act()


def delete(path: str) -> None:
    """Delete a file or a folder with all that is in it; nothing happens where it is not there."""
    if is_remote(path):
        buckets.delete(path)
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
