"""The folder that prepared data goes to: whose it is, whether it is finished, and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from model.dataset_info import DATASET_FILE, REJECTED_FILE, SPLITS, DatasetInfo, read_dataset
from model.errors import InputError
from pipelines import storage

PLAN_FOLDER = "_prepare"
"""Holds the plan and unfinished files. It is made first and goes when all is done: it marks a folder as ours."""

_SHARD = re.compile(r"(train|val|test)-\d{5,}-of-\d{5,}\.tfrecord")
_PLAN_FILE = re.compile(r"chunk-\d{6,}\.json|[0-9a-f]{32}\.tmp|\.[0-9a-f]{32}\.tmp")


def read_finished(out: str) -> DatasetInfo | None:
    """What a folder's finished data says of itself; None where there is none.

    Raises:
        InputError: its ``dataset.json`` is damaged.
    """
    return read_dataset(out) if os.path.exists(os.path.join(out, DATASET_FILE)) else None


def check_ours(out: str) -> None:
    """Make sure that a folder may be written to.

    Raises:
        InputError: it is a file, or holds something and nothing in it says that prepare made it.
    """
    if not os.path.exists(out):
        return
    if not os.path.isdir(out):
        raise InputError(f"--out {out} is a file, not a folder")
    names = set(os.listdir(out))
    if names and not names & {PLAN_FOLDER, DATASET_FILE}:
        raise InputError(f"--out {out} is not empty and not made by prepare; give a new folder")


@contextlib.contextmanager
def locked(out: str) -> Iterator[None]:
    """Make a folder and hold it for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        InputError: it cannot be made, or another prepare is writing there.
    """
    storage.make_directory(out)
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another prepare is writing to {out}; wait for it or give another --out") from None
        yield
    finally:
        os.close(descriptor)


def clear(out: str) -> None:
    """Delete what prepare wrote into a folder, finished or not, and nothing else; the folder is marked as ours.

    Raises:
        InputError: a file cannot be deleted.
    """
    try:
        # First the file that says "finished": cut off here, the rest is an unfinished folder, never a damaged one.
        os.makedirs(os.path.join(out, PLAN_FOLDER), exist_ok=True)
        for name in (DATASET_FILE, REJECTED_FILE):
            storage.delete(os.path.join(out, name))
        for split in SPLITS:
            _delete_matching(os.path.join(out, split), _SHARD)
            _remove_empty(os.path.join(out, split))
        _delete_matching(os.path.join(out, PLAN_FOLDER), _PLAN_FILE)
    except OSError as error:
        raise InputError(f"cannot clear {error.filename}: {error.strerror}") from error


def clear_plan(out: str) -> None:
    """Delete the plan and unfinished files of finished data."""
    _delete_matching(os.path.join(out, PLAN_FOLDER), _PLAN_FILE)
    _remove_empty(os.path.join(out, PLAN_FOLDER))


def _delete_matching(folder: str, pattern: re.Pattern[str]) -> None:
    for name in storage.list_names(folder):
        if pattern.fullmatch(name):
            storage.delete(os.path.join(folder, name))


def _remove_empty(folder: str) -> None:
    # A folder that holds something else is not ours alone: it stays.
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def missing_shard(info: DatasetInfo) -> str | None:
    """The first shard of finished data that is not there any more, or None."""
    paths = (path for split in SPLITS for path in info.shard_paths(split))
    return next((path for path in paths if not os.path.isfile(path)), None)


@contextlib.contextmanager
def atomic_writer(out: str, name: str) -> Iterator[BinaryIO]:
    """A stream into the file ``out/name``, which appears when the block ends, whole, and not at all on an error.

    Runners may do the same work twice at once: each writes a file of its own, and renaming either gives the same.
    """
    unfinished = os.path.join(out, PLAN_FOLDER, f"{uuid.uuid4().hex}.tmp")
    path = os.path.join(out, name)
    os.makedirs(os.path.dirname(unfinished), exist_ok=True)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(unfinished, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except BaseException:
        storage.delete(unfinished)
        raise
