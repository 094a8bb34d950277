"""One writer at a time: a lock file that tells its holder, on local disk and in a bucket alike.

On local disk the kernel's lock (``flock``) on the file is what counts, which goes with its process however that ends.
A bucket knows no such thing: there the file itself is the lock, put where none is (one request, of which only one can
win) and removed at the end. One that a process of this machine left behind when it died is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import InputError, RunError
from pipelines import buckets, storage

ATTEMPTS = 5
"""Attempts at a lock in a bucket whose holder comes and goes meanwhile."""


@contextlib.contextmanager
def held(path: str, folder: str) -> Iterator[None]:
    """Hold a lock file while the block runs.

    Args:
        path: the lock file.
        folder: what is written under it, for the message.

    Raises:
        RunError: someone else holds it, or it cannot be written.
        InputError: the store asks for credentials.
    """
    holding = _held_in_bucket(path, folder) if storage.is_remote(path) else _held_on_disk(path, folder)
    with holding:
        yield


def identity() -> dict[str, Any]:
    """Who this process is: a token of its own, and what another process of this machine needs to find it."""
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        "processes": _processes(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def is_alive(holder: Mapping[str, Any]) -> bool | None:
    """Whether a holder still runs; None where this machine cannot tell.

    A number alone does not name a process: another host or container has its own, and a number is given out again.
    """
    here = identity()
    if holder.get("host") != here["host"] or not isinstance(holder.get("pid"), int):
        return None
    if not here["boot_id"]:
        return None
    if holder.get("boot_id") != here["boot_id"]:
        # The machine was started again since.
        return False
    if holder.get("processes") != here["processes"]:
        return None
    return _started(holder["pid"]) == holder.get("started")


def describe(holder: Mapping[str, Any]) -> str:
    """A holder in words."""
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= set(holder) else "another process"


@contextlib.contextmanager
def _held_on_disk(path: str, folder: str) -> Iterator[None]:
    storage.make_directory(os.path.dirname(path))
    with contextlib.ExitStack() as stack:
        stream = _lock_file(path, folder, stack)
        stream.truncate(0)
        stream.write(json.dumps(identity()).encode())
        stream.flush()
        try:
            yield
        finally:
            Path(path).unlink(missing_ok=True)


def _lock_file(path: str, folder: str, stack: contextlib.ExitStack) -> BinaryIO:
    while True:
        try:
            stream = stack.enter_context(open(path, "a+b"))  # noqa: SIM115
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{folder} is being written by {describe(_content(path))}: wait for it, or give another --out"
            ) from None
        # The holder before may have removed the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(stream.fileno()).st_ino == os.stat(path).st_ino:
                return stream


@contextlib.contextmanager
def _held_in_bucket(path: str, folder: str) -> Iterator[None]:
    ours = json.dumps(identity()).encode()
    _put_lock(path, folder, ours)
    try:
        yield
    finally:
        # Only our own: it may have been removed by hand, and another's be there by now.
        with contextlib.suppress(OSError, InputError):
            if storage.read_bytes(path) == ours:
                storage.delete(path)


def _put_lock(path: str, folder: str, ours: bytes) -> None:
    try:
        for _ in range(ATTEMPTS):
            if buckets.put_if_absent(path, ours):
                return
            with contextlib.suppress(FileNotFoundError):
                # The version first: what is deleted below is then never newer than what was read.
                version = buckets.version(path)
                holder = _content(path)
                alive = is_alive(holder)
                if version is None or alive is not False:
                    hint = "" if alive else f"; if that has ended, remove {path}"
                    raise RunError(
                        f"{folder} is being written by {describe(holder)}: wait for it, or give another --out{hint}"
                    )
                buckets.delete_version(path, version)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from error
    raise RunError(f"{folder} is being written by others, one after the other: try again")


def _content(path: str) -> dict[str, Any]:
    try:
        holder = json.loads(storage.read_bytes(path))
    except (FileNotFoundError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _processes() -> str:
    """The name space that process numbers are of: each container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where no such process runs."""
    # The second field, the program's name, may hold blanks and brackets: what follows is counted from its end.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]
