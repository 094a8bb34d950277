"""One face for local paths and buckets: list, read, atomic put, put-if-absent.

A local put is a file written under a temporary name, synced and renamed; on an object store a single put is atomic by
itself. Buckets (``gs://`` and others) go through fsspec, whose driver comes with an extra of this package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from model.errors import InputError

Result = TypeVar("Result")

GLOB_CHARACTERS = frozenset("*?[")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """A file as a listing gives it: its path and its size in bytes."""

    path: str
    size: int


def is_remote(path: str) -> bool:
    """Whether a path names an object store (``scheme://...``) rather than a local file."""
    return "://" in path


def join(base: str, *parts: str) -> str:
    """Join path segments with forward slashes, for local paths and buckets alike."""
    return posixpath.join(base, *parts)


def base_name(path: str) -> str:
    """The last segment of a path."""
    return posixpath.basename(path.rstrip("/"))


def _remote(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot open {path}: {error}") from error
    return filesystem, inner


def open_input(path: str) -> BinaryIO:
    """Open a file for reading as a stream of bytes.

    Raises:
        FileNotFoundError, OSError: it is not there or cannot be read.
        InputError: the driver of the path's scheme is not installed.
    """
    if is_remote(path):
        filesystem, inner = _remote(path)
        return cast(BinaryIO, filesystem.open(inner, "rb"))
    return open(path, "rb")


def read_bytes(path: str) -> bytes:
    """The whole content of a file; raises as :func:`open_input`."""
    with open_input(path) as stream:
        return stream.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """``length`` bytes of a file from ``offset``; raises as :func:`open_input`."""
    with open_input(path) as stream:
        stream.seek(offset)
        return stream.read(length)


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    if is_remote(path):
        filesystem, inner = _remote(path)
        return bool(filesystem.exists(inner))
    return os.path.exists(path)


def is_directory(path: str) -> bool:
    """Whether a path is a folder (on an object store: a prefix of some object)."""
    if is_remote(path):
        filesystem, inner = _remote(path)
        return bool(filesystem.isdir(inner))
    return os.path.isdir(path)


def list_names(directory: str) -> list[str]:
    """Names of the files directly inside a folder, sorted; empty where the folder is not there."""
    if is_remote(directory):
        filesystem, inner = _remote(directory)
        if not filesystem.exists(inner):
            return []
        entries = filesystem.ls(inner, detail=True)
        return sorted(base_name(entry["name"]) for entry in entries if entry["type"] == "file")
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except FileNotFoundError:
        return []


def list_files(pattern: str) -> list[FileInfo]:
    """The files that a path, a glob pattern or a folder (with all its subfolders) names, sorted by path.

    Hidden files and folders, whose names begin with a dot or an underscore, are left out of folders. Links to folders
    are followed once each, so that a link to a parent ends the walk rather than going round for ever.

    Raises:
        InputError: nothing is there, or a folder cannot be read.
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
    filesystem, inner = _remote(pattern)
    scheme = pattern.split("://", 1)[0]
    if GLOB_CHARACTERS & set(inner):
        details = filesystem.glob(inner, detail=True)
    else:
        details = filesystem.find(inner, detail=True)
    return [
        FileInfo(f"{scheme}://{path.lstrip('/')}", int(detail["size"]))
        for path, detail in details.items()
        if detail["type"] == "file"
    ]


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
        filesystem, inner = _remote(path)
        filesystem.pipe_file(inner, data)
        return
    folder = os.path.dirname(path)
    unfinished = os.path.join(temporary or folder, f".{uuid.uuid4().hex}.tmp")
    try:
        _write_synced(unfinished, data)
        _with_folder(folder, lambda: os.replace(unfinished, path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def _write_synced(path: str, data: bytes) -> None:
    stream = _with_folder(os.path.dirname(path), lambda: open(path, "wb"))  # noqa: SIM115
    with stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


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
        filesystem, inner = _remote(path)
        if filesystem.exists(inner):
            filesystem.rm(inner, recursive=True)
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
