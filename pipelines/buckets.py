"""Object stores (``gs://`` and others) through fsspec, whose driver comes with an extra of this package.

An object appears whole or not at all when a put ends, so nothing here is renamed. Every error is an OSError that names
the path as it was given, or an InputError where no attempt can help: a driver or credentials are missing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from model.errors import InputError

READ_BYTES = 4 * 2**20
"""What a stream asks of the store at a time: enough to hide the latency of a request."""

GLOB_CHARACTERS = frozenset("*?[")
EXTRAS = {"gs": "gcp", "gcs": "gcp"}
_GOOGLE = "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a key"
LOGIN = {"gs": _GOOGLE, "gcs": _GOOGLE}

_open = threading.Lock()


def scheme_of(path: str) -> str:
    """The scheme of a URL."""
    return path.partition("://")[0]


def driver(path: str, versions: bool = False) -> tuple[Any, str]:
    """fsspec's file system for a URL, and what the file is called there.

    Args:
        path: the URL.
        versions: let ``#GENERATION`` at the end of a name mean one version of the object (Cloud Storage).

    Raises:
        InputError: the driver of the scheme is not installed, or there is none.
    """
    scheme = scheme_of(path)
    # A listing that is remembered would hide what other workers have committed since.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("gs", "gcs"):
        # The driver's support of zonal buckets asks another service about every bucket first.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        # It prints a traceback of what it raises, too.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        if versions:
            options["version_aware"] = True
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            options["token"] = "anon"
    import fsspec

    try:
        with _open:
            filesystem = fsspec.filesystem(scheme, **options)
        return filesystem, cast(str, filesystem._strip_protocol(path))
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        hint = f": pip install -c constraints.txt '.[{extra}]'" if extra else f": {error}"
        raise InputError(f"{path} needs a driver that is not installed{hint}") from error
    except ValueError as error:
        raise InputError(f"cannot open {path}: {error}") from error


@contextlib.contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Turn what a driver raises into an OSError with a number, a reason and the path, or an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise _translated(error, path) from error


def _translated(error: Exception, path: str) -> Exception:
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object or bucket", path)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "it is there already", path)
    if getattr(error, "code", None) == 401 or "credentials" in type(error).__name__.lower():
        login = LOGIN.get(scheme_of(path))
        return InputError(f"{path}: the store asks for credentials ({text})" + (f": {login}" if login else ""))
    if isinstance(error, PermissionError) or text.startswith("Forbidden"):
        return PermissionError(errno.EACCES, f"permission denied ({text})", path)
    if isinstance(error, OSError) and error.errno is not None:
        return type(error)(error.errno, error.strerror or text, path)
    return OSError(errno.EIO, f"{text or type(error).__name__}", path)


class _Reader(io.RawIOBase):
    """A driver's stream whose errors are ours."""

    def __init__(self, stream: Any, path: str) -> None:
        self._stream = stream
        self._path = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        with errors_of(self._path):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_input(path: str) -> BinaryIO:
    """A stream of an object's bytes that holds a few MiB of them at a time."""
    filesystem, inner = driver(path)
    with errors_of(path):
        stream = filesystem.open(inner, "rb", block_size=READ_BYTES)
    return cast(BinaryIO, io.BufferedReader(_Reader(stream, path)))


def read_range(path: str, offset: int = 0, length: int | None = None) -> bytes:
    """Some bytes of an object, or all of them, in one request."""
    filesystem, inner = driver(path)
    whole = offset == 0 and length is None
    span = {} if whole else {"start": offset, "end": None if length is None else offset + length}
    try:
        with errors_of(path):
            return bytes(filesystem.cat_file(inner, **span))
    except OSError as error:
        # A range that begins behind the end, as any does of an empty object.
        if getattr(error.__cause__, "code", None) == 416:
            return b""
        raise


def exists(path: str) -> bool:
    """Whether an object, or one below this name, is there."""
    filesystem, inner = driver(path)
    with errors_of(path):
        return bool(filesystem.exists(inner))


def is_directory(path: str) -> bool:
    """Whether an object lies below this name."""
    filesystem, inner = driver(path)
    with errors_of(path):
        return bool(filesystem.isdir(inner))


def entries(directory: str) -> dict[str, bool]:
    """Names directly below a name, each with whether it is an object itself (else others lie below it)."""
    filesystem, inner = driver(directory)
    try:
        with errors_of(directory):
            found = filesystem.ls(inner.rstrip("/"), detail=True)
    except FileNotFoundError:
        return {}
    below = inner.rstrip("/") + "/"
    names = {entry["name"].lstrip("/").rstrip("/"): entry["type"] == "file" for entry in found}
    return {
        name.removeprefix(below.lstrip("/")): is_file
        for name, is_file in names.items()
        if name.startswith(below.lstrip("/"))
    }


def listing(pattern: str) -> list[tuple[str, int, str]]:
    """URL, size in bytes and content tag of all objects that a glob pattern matches, or at or below a name."""
    filesystem, inner = driver(pattern)
    scheme = scheme_of(pattern)
    with errors_of(pattern):
        search = filesystem.glob if GLOB_CHARACTERS & set(inner) else filesystem.find
        details = search(inner, detail=True)
    return [
        (f"{scheme}://{name.lstrip('/')}", int(detail["size"]), str(detail.get("etag") or detail.get("ETag") or ""))
        for name, detail in details.items()
        if detail["type"] == "file" and not name.endswith("/")
    ]


def put(path: str, data: bytes) -> None:
    """Write an object; what was there is replaced."""
    filesystem, inner = driver(path)
    with errors_of(path):
        filesystem.pipe_file(inner, data)


def put_if_absent(path: str, data: bytes) -> bool:
    """Write an object where there is none, in one request; whether it was written."""
    filesystem, inner = driver(path)
    try:
        with errors_of(path):
            filesystem.pipe_file(inner, data, mode="create")
    except FileExistsError:
        # The answer to a request that came through may be lost, and the driver asks again.
        return read_range(path) == data
    return True


def upload(local: str, path: str) -> None:
    """Write an object from a local file of any size."""
    filesystem, inner = driver(path)
    with errors_of(path):
        filesystem.put_file(local, inner)


def delete(path: str) -> None:
    """Delete an object and those below its name; nothing happens where there is none."""
    filesystem, inner = driver(path)
    with errors_of(path), contextlib.suppress(FileNotFoundError):
        filesystem.rm(inner, recursive=True)


def version(path: str) -> str | None:
    """The version that an object has now, for :func:`delete_version`; None where the store tells none."""
    filesystem, inner = driver(path)
    with errors_of(path):
        found = filesystem.info(inner).get("generation")
    return None if found is None else str(found)


def delete_version(path: str, expected: str) -> bool:
    """Delete an object if it still has this version; whether it was deleted."""
    filesystem, inner = driver(path, versions=True)
    try:
        with errors_of(path):
            filesystem.rm_file(f"{inner}#{expected}")
    except FileNotFoundError:
        return False
    return True
