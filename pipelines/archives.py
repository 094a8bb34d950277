"""Fetch and open the archives that labelled images come in: zip, tar, and rar or 7z through a program on the PATH."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import posixpath
import re
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from model.errors import InputError

NESTING_LIMIT = 3
"""Archives in archives are opened this deep: a real data set needs 2, a malicious one has no end."""

CACHE_VARIABLE = "CRACKSCAN_CACHE"

_FOREIGN_MAGIC = (b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c")
_OPENERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("unar", ("-quiet", "-force-overwrite", "-no-directory", "-output-directory", "{out}", "{archive}")),
    ("unrar", ("x", "-idq", "-o+", "-p-", "--", "{archive}", "{out}/")),
    ("bsdtar", ("-x", "-f", "{archive}", "-C", "{out}")),
    ("7z", ("x", "-y", "-bd", "-p", "-o{out}", "{archive}")),
)


def file_sha256(path: str) -> str:
    """SHA-256 (hexadecimal) of a file's content; raises OSError where it cannot be read."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(url: str, sha256: str | None = None) -> str:
    """Fetch a file once into the cache, with a progress bar on stderr.

    Args:
        url: http or https address.
        sha256: expected SHA-256 (hexadecimal) of the file; None takes what comes.

    Returns:
        Path of the file in the cache: the folder in ``CRACKSCAN_CACHE``, else the user's cache folder. It is there
        whole or not at all.

    Raises:
        InputError: the server does not give the file, the connection breaks, or the hash is another.
    """
    import pooch
    import requests

    from pipelines.preparation_progress import DownloadBar

    logging.getLogger("pooch").setLevel(logging.WARNING)
    pooch.get_logger().setLevel("WARNING")
    cache = os.environ.get(CACHE_VARIABLE) or pooch.os_cache("crackscan")
    # A server that compresses on the way would make the length that the bar knows wrong.
    headers = {"Accept-Encoding": "identity"}
    try:
        with DownloadBar(posixpath.basename(urlsplit(url).path) or url) as bar, contextlib.ExitStack() as connections:

            def keep(response: requests.Response, **_: object) -> None:
                # pooch leaves the connection of a failed download open.
                connections.callback(response.close)

            options = {"headers": headers, "hooks": {"response": keep}}
            downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 18, **options)
            known_hash = f"sha256:{sha256}" if sha256 else None
            return str(pooch.retrieve(url, known_hash=known_hash, path=cache, downloader=downloader))
    except requests.RequestException as error:
        raise InputError(f"cannot download {url}: {error}") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot keep the download in {cache}: {error.strerror}") from error


def is_archive(path: str) -> bool:
    """Whether a file is a zip, tar, rar or 7z archive, by its content."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path) or _is_foreign(path)


def unpack(archive: str, directory: str) -> str:
    """Extract an archive below a folder, and an archive that it wraps too.

    Args:
        archive: path of the archive.
        directory: an existing folder for everything extracted.

    Returns:
        The folder below ``directory`` that holds the innermost archive's files.

    Raises:
        InputError: it is no archive, is damaged or encrypted, has an entry that is unsafe (a path that leads out of
            the folder, a link, a device), does not fit on the disk, or no program for its kind is installed.
    """
    shown = os.path.basename(archive)
    inner: str | None = archive
    folder = directory
    for level in range(NESTING_LIMIT):
        if inner is None:
            return folder
        folder = os.path.join(directory, str(level))
        os.mkdir(folder)
        _extract(inner, folder, shown)
        inner = _sole_archive(folder)
        shown = f"{shown} > {os.path.basename(inner)}" if inner else shown
    if inner is not None:
        raise InputError(f"{shown}: archives lie more than {NESTING_LIMIT} deep in each other; unpack it by hand")
    return folder


def _extract(archive: str, folder: str, shown: str) -> None:
    try:
        if _is_foreign(archive):
            _extract_foreign(archive, folder, shown)
        elif tarfile.is_tarfile(archive):
            _extract_tar(archive, folder, shown)
        elif zipfile.is_zipfile(archive):
            _extract_zip(archive, folder, shown)
        else:
            raise InputError(f"{shown} is no archive (zip, tar, rar or 7z)")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise InputError(f"the archive {shown} is damaged or unsafe: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(f"cannot open the archive {shown}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot unpack {shown} into {folder}: {error.strerror or error}") from error


def _extract_zip(archive: str, folder: str, shown: str) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            _check_name(member.filename, shown)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{shown} is refused: its entry {member.filename} is a link or a device")
        _check_space(sum(member.file_size for member in members), folder, shown)
        opened.extractall(folder)


def _extract_tar(archive: str, folder: str, shown: str) -> None:
    with tarfile.open(archive) as opened:
        for member in opened:
            _check_name(member.name, shown)
            if not (member.isreg() or member.isdir()):
                raise InputError(f"{shown} is refused: its entry {member.name} is a link or a device")
            opened.extract(member, folder, filter="data")


def _extract_foreign(archive: str, folder: str, shown: str) -> None:
    complaint = ""
    for program, arguments in _OPENERS:
        if not shutil.which(program):
            continue
        values = {"archive": os.path.abspath(archive), "out": folder}
        command = [program, *(argument.format(**values) for argument in arguments)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            _check_extracted(folder, shown)
            return
        lines = (done.stderr or done.stdout).strip().splitlines()
        complaint = f"{program}: {lines[-1] if lines else f'exit code {done.returncode}'}"
        # What a program left before it failed must not pass for the whole.
        shutil.rmtree(folder)
        os.mkdir(folder)
    if complaint:
        raise InputError(f"cannot unpack {shown} ({complaint})")
    raise InputError(f"{shown} needs a program that opens rar and 7z: apt-get install unar (or brew install unar)")


def _check_name(name: str, shown: str) -> None:
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        raise InputError(f"{shown} is refused: its entry {name} leads out of the folder it is unpacked into")


def _check_space(size: int, folder: str, shown: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"{shown} unpacks to {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; set TMPDIR"
        )


def _check_extracted(folder: str, shown: str) -> None:
    for parent, subfolders, names in os.walk(folder):
        for name in (*subfolders, *names):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise InputError(f"{shown} is refused: its entry {os.path.relpath(path, folder)} is a link or a device")


def _sole_archive(folder: str) -> str | None:
    entries = _visible(folder)
    while len(entries) == 1 and entries[0].is_dir():
        entries = _visible(entries[0])
    if any(entry.is_dir() for entry in entries):
        return None
    archives = [str(entry) for entry in entries if is_archive(str(entry))]
    return archives[0] if len(archives) == 1 else None


def _visible(folder: str | Path) -> Sequence[Path]:
    return [entry for entry in sorted(Path(folder).iterdir()) if not entry.name.startswith((".", "__MACOSX"))]


def _is_foreign(path: str) -> bool:
    with open(path, "rb") as stream:
        return stream.read(8).startswith(_FOREIGN_MAGIC)
