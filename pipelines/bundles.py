"""Model bundles in buckets: each process copies what the engines read to local disk once."""

from __future__ import annotations

import functools
import os
import tempfile

from model.bundle import KERAS_FILE, MODEL_FILE, TRAINING_FOLDER
from model.errors import BundleError, InputError
from pipelines import storage


@functools.lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="crackscan-models-", ignore_cleanup_errors=True)


def local_bundle(path: str) -> str:
    """A bundle's place on local disk; one in a bucket is copied there, without its training record and Keras file.

    The hashes in ``model.json`` are checked where the files are read, so a copy needs no check of its own.

    Raises:
        BundleError: there is none.
        InputError: the store asks for credentials.
    """
    return _fetch(storage.absolute(path)) if storage.is_remote(path) else os.path.abspath(path)


@functools.cache
def _fetch(path: str) -> str:
    try:
        files = storage.list_files(path)
    except InputError as error:
        raise BundleError(f"no model bundle at {path}: {error}") from error
    names = [file.path[len(path) + 1 :] for file in files]
    if MODEL_FILE not in names:
        raise BundleError(f"no model bundle at {path}: run python -m jobs.train first (no {path}/{MODEL_FILE})")
    folder = tempfile.mkdtemp(dir=_folder().name)
    try:
        for name in names:
            if name != KERAS_FILE and not name.startswith(f"{TRAINING_FOLDER}/"):
                storage.copy(storage.join(path, name), os.path.join(folder, name))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    return folder
