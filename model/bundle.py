"""Model bundles: a SavedModel directory, its LiteRT and Keras twins, and ``model.json`` that vouches for all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.errors import BundleError, InputError
from model.spec import ModelSpec, fingerprint

PRETRAINED = os.path.join(os.path.dirname(__file__), "pretrained", "small")
"""The bundle that comes with the package; ``model/pretrained/README.md`` is its card."""

MODEL_FILE = "model.json"
LITERT_FILE = "model.tflite"
LITERT_INT8_FILE = "model_int8.tflite"
KERAS_FILE = "model.keras"
REFERENCE_FILE = "reference.json"
TRAINING_FOLDER = "training"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened model bundle.

    Attributes:
        path: its folder.
        spec: what its network is.
        values: the whole of ``model.json``.
    """

    path: str
    spec: ModelSpec
    values: Mapping[str, Any]

    def verified(self, name: str) -> str:
        """The path of one of the bundle's files after its SHA-256 was compared with ``model.json``.

        Raises:
            BundleError: the file is missing, changed, or none of the bundle's.
        """
        expected = self.values["files"].get(name)
        path = os.path.join(self.path, name)
        if expected is None:
            raise BundleError(f"the bundle {self.path} has no {name}")
        try:
            found = sha256_of_file(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}; train the bundle again") from error
        if found != expected:
            raise BundleError(f"{path} has changed since it was written; train the bundle again")
        return path

    def verified_saved_model(self) -> str:
        """The bundle's folder, as a SavedModel, after the hashes of the SavedModel's files were checked.

        Raises:
            BundleError: one of them is missing or changed.
        """
        for name in self.values["files"]:
            if _of_saved_model(name):
                self.verified(name)
        return self.path


def open_bundle(path: str) -> Bundle:
    """Open a model bundle; its large files are checked when they are read.

    Raises:
        BundleError: there is none, or its ``model.json`` is damaged or of a later version.
    """
    file = os.path.join(path, MODEL_FILE)
    try:
        values = json.loads(Path(file).read_bytes())
        if values["format_version"] > FORMAT_VERSION:
            version = values["format_version"]
            raise BundleError(
                f"{file} is of version {version}; this crackscan reads up to {FORMAT_VERSION}: upgrade it"
            )
        spec = ModelSpec.from_json(values)
        expected = model_fingerprint(spec, values["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"no model bundle at {path}: run python -m jobs.train first (no {file})") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise BundleError(f"{file} is damaged: {error!r}") from error
    if spec.fingerprint != expected:
        raise BundleError(f"{file} has changed since it was written; train the bundle again")
    return Bundle(path, spec, values)


def model_fingerprint(spec: ModelSpec, files: Mapping[str, str]) -> str:
    """SHA-256 over what decides the model's answers: its spec and the hashes of its network files."""
    litert = (LITERT_FILE, LITERT_INT8_FILE)
    network = {name: digest for name, digest in files.items() if _of_saved_model(name) or name in litert}
    return fingerprint({"spec": dataclasses.asdict(dataclasses.replace(spec, fingerprint="")), "files": network})


def _of_saved_model(name: str) -> bool:
    return name in ("saved_model.pb", "fingerprint.pb") or name.startswith(("variables/", "assets/"))


class BundleWriter:
    """Writes a bundle beside its place and moves it there when it is whole.

    Args:
        out: the bundle's place.
        overwrite: replace a bundle that is there already.

    Raises:
        InputError: there is something at ``out`` and ``overwrite`` is off, or it is no bundle.

    Attributes:
        folder: where to write files while the bundle is unfinished.
    """

    def __init__(self, out: str, overwrite: bool = False) -> None:
        # Absolute, because "." has no name to put something beside.
        self._out = Path(os.path.abspath(out))
        self.folder = self._out.with_name(f"{self._out.name}.unfinished")
        if self._out.exists() and not (self._out.is_dir() and not any(self._out.iterdir())):
            if not (self._out / MODEL_FILE).is_file():
                raise InputError(f"{out} is there already and is no model bundle: choose another --out")
            if not overwrite:
                raise InputError(f"{out} holds a model bundle already: give --overwrite, or another --out")
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}") from error

    def finish(self, spec: ModelSpec, values: Mapping[str, Any]) -> Bundle:
        """Hash the files, write ``model.json`` and move the bundle to its place.

        Args:
            spec: what the network is; its fingerprint is filled in.
            values: what else ``model.json`` shall say; must not repeat the spec's names.
        """
        files = {
            path.relative_to(self.folder).as_posix(): sha256_of_file(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        spec = dataclasses.replace(spec, fingerprint=model_fingerprint(spec, files))
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(spec), **values, "files": files}
        (self.folder / MODEL_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        replaced = self._out.with_name(f"{self._out.name}.replaced")
        if replaced.exists():
            shutil.rmtree(replaced)
        if self._out.exists():
            self._out.rename(replaced)
        self.folder.rename(self._out)
        shutil.rmtree(replaced, ignore_errors=True)
        return open_bundle(str(self._out))

    def discard(self) -> None:
        """Remove what was written so far."""
        shutil.rmtree(self.folder, ignore_errors=True)


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hexadecimal) of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
