"""Where labelled images come from: a folder with one subfolder per class, an archive of one, or drawn patches."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from urllib.parse import urlsplit

from model.errors import InputError
from model.spec import fingerprint
from model.synthetic import BINARY_CLASSES, THREE_CLASSES, draw_image
from pipelines.archives import download, file_sha256, is_archive, unpack
from pipelines.preparation_progress import track

METU_URL = "https://prod-dcd-datasets-cache-zipfiles.s3.eu-west-1.amazonaws.com/5y9wdsg2zt-2.zip"
"""Concrete Crack Images for Classification, version 2 (Özgenel 2019, doi 10.17632/5y9wdsg2zt.2, CC BY 4.0): the
"download all" of https://data.mendeley.com/datasets/5y9wdsg2zt/2, a zip that holds a rar."""

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})

PARALLEL_DRAWING = 200
"""From this many patches on, starting processes to draw them pays."""

_SYNTHETIC = re.compile(r"synthetic:(?P<count>\d+)(?::(?P<classes>[23]))?")
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini"})
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


@dataclasses.dataclass(frozen=True, slots=True)
class SourceImage:
    """A labelled image, by reference.

    Attributes:
        path: absolute path of its file.
        class_name: its label.
        filename: what it is called in the prepared data, such as ``Positive/00001.jpg``; always valid Unicode.
    """

    path: str
    class_name: str
    filename: str


@dataclasses.dataclass(frozen=True)
class Location:
    """A source that was found (and downloaded), not opened yet.

    Attributes:
        source: as it was named, without the secrets that an address may carry.
        path: of the local folder or archive; "" for drawn patches.
        archive_sha256: SHA-256 (hexadecimal) of the archive, or None.
        synthetic: number of patches to draw, and the classes to draw; None for files.
    """

    source: str
    path: str = ""
    archive_sha256: str | None = None
    synthetic: tuple[int, tuple[str, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        location: the source.
        images: sorted by filename.
        classes: sorted names.
        skipped: number of files that are no images or hidden, by lower-case extension or kind.
        digest: SHA-256 (hexadecimal) that changes when the source does. Of an archive it depends on the archive's
            content alone; of a folder on names, sizes and modification times, which cost no reading.
    """

    location: Location
    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]
    skipped: Mapping[str, int]
    digest: str


def locate_source(source: str, sha256: str | None = None) -> Location:
    """Find a source, and download it where it is an address.

    Args:
        source: a folder, an archive, an http(s) address of an archive, ``metu``, ``synthetic:N`` or ``synthetic:N:3``.
        sha256: expected SHA-256 (hexadecimal) of the archive.

    Raises:
        InputError: it is not there, is of no known kind, or is not what the hash says.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 takes 64 hexadecimal digits, not {sha256!r}")
    expected = sha256.lower() if sha256 else None
    url = METU_URL if source == "metu" else source
    if url.startswith(("http://", "https://")):
        address = urlsplit(url)
        shown = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
        return _locate_archive(download(url, expected), shown, None)
    if source.startswith("synthetic:"):
        if expected:
            raise InputError("--sha256 is of an archive; drawn patches have none")
        return Location(source, synthetic=_parse_synthetic(source))
    if "://" in source:
        raise InputError(f"cannot prepare {source}: SRC is a local folder, an archive, or an http(s) address of one")
    if os.path.isdir(source):
        if expected:
            raise InputError(f"--sha256 is of an archive; {source} is a folder")
        return Location(source, os.path.abspath(source))
    if not os.path.exists(source):
        raise InputError(f"no source at {source}: give a folder, an archive, an address, metu or synthetic:N")
    return _locate_archive(os.path.abspath(source), source, expected)


def listing_digest(location: Location) -> str | None:
    """The digest of a source's :class:`Listing` where it can be told without opening the source, else None."""
    if location.archive_sha256:
        return fingerprint({"archive": location.archive_sha256})
    if location.synthetic:
        return fingerprint({"synthetic": location.synthetic})
    return None


@contextlib.contextmanager
def open_source(location: Location) -> Iterator[Listing]:
    """List a source's images; drawn patches and what an archive held lie in a temporary folder until the block ends.

    Raises:
        InputError: the archive is damaged or unsafe, a folder cannot be read, or there are fewer than two classes.
    """
    if not location.synthetic and not location.archive_sha256:
        yield _list_folder(location, location.path)
        return
    with tempfile.TemporaryDirectory(prefix="crackscan-", ignore_cleanup_errors=True) as directory:
        if location.synthetic:
            yield _draw_patches(location, directory, *location.synthetic)
        else:
            yield _list_folder(location, unpack(location.path, directory))


def read_image(image: SourceImage) -> bytes:
    """The bytes of an image's file.

    Raises:
        OSError: the file is gone or cannot be read.
    """
    with open(image.path, "rb") as stream:
        return stream.read()


def _locate_archive(path: str, shown: str, expected: str | None) -> Location:
    try:
        archive = is_archive(path)
        found = file_sha256(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if expected and found != expected:
        raise InputError(f"{shown} has SHA-256 {found}, not the expected {expected}")
    if not archive:
        raise InputError(f"{shown} is neither a folder nor an archive (zip, tar, rar or 7z)")
    return Location(shown, path, found)


def _parse_synthetic(source: str) -> tuple[int, tuple[str, ...]]:
    match = _SYNTHETIC.fullmatch(source)
    if not match or not int(match["count"]):
        raise InputError(f"{source!r} is not synthetic:N or synthetic:N:3, where N is a number of images")
    return int(match["count"]), _synthetic_classes(match["classes"] or "2")


def _synthetic_classes(number: str) -> tuple[str, ...]:
    return THREE_CLASSES if number == "3" else BINARY_CLASSES


def _draw_patches(location: Location, directory: str, count: int, classes: tuple[str, ...]) -> Listing:
    if count < len(classes):
        raise InputError(f"{location.source} has fewer images than its {len(classes)} classes")
    draw = functools.partial(_draw_patch, directory=directory, classes=classes)
    if count < PARALLEL_DRAWING:
        images = [draw(index) for index in range(count)]
    else:
        # Drawing is Python code, which threads would not speed up; forking is not safe once Beam is loaded.
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            images = list(track("patches drawn", pool.map(draw, range(count), chunksize=16), count))
    images.sort(key=lambda image: image.filename)
    return Listing(location, tuple(images), tuple(sorted(classes)), {}, listing_digest(location) or "")


def _draw_patch(index: int, directory: str, classes: tuple[str, ...]) -> SourceImage:
    patch = draw_image(index, classes=classes)
    path = os.path.join(directory, patch.filename)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(patch.encoded)
    return SourceImage(path, patch.class_name, patch.filename)


def _list_folder(location: Location, folder: str) -> Listing:
    root = _class_root(folder)
    skipped: Counter[str] = Counter()
    images: list[SourceImage] = []
    statuses: list[tuple[str, int, int]] = []
    for class_folder in _subfolders(root):
        for path in _walk(os.path.join(root, class_folder), skipped):
            kind = _kind_if_no_image(path)
            if kind:
                skipped[kind] += 1
                continue
            filename = _readable(os.path.relpath(path, root))
            images.append(SourceImage(path, _readable(class_folder), filename))
            statuses.append((filename, *_size_and_time(path)))
    classes = tuple(sorted({image.class_name for image in images}))
    _check_layout(location.source, classes, skipped)
    images.sort(key=lambda image: image.filename)
    digest = listing_digest(location) or fingerprint(sorted(statuses))
    return Listing(location, tuple(images), classes, dict(sorted(skipped.items())), digest)


def _check_layout(source: str, classes: Sequence[str], skipped: Mapping[str, int]) -> None:
    layout = "SRC/Negative/1.jpg, SRC/Positive/1.jpg, ..."
    if len(classes) < 2:
        found = f"has images in one subfolder only ({classes[0]})" if classes else "has no subfolder with images"
        ignored = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        passed_over = f" (skipped: {ignored})" if ignored else ""
        raise InputError(f"{source} {found}{passed_over}; needed are two or more, one per class: {layout}")
    if all(name.lower() in SPLIT_NAMES for name in classes):
        names = ", ".join(classes)
        raise InputError(
            f"the subfolders of {source} are splits ({names}), not classes; prepare splits by itself: {layout}"
        )


def _class_root(folder: str) -> str:
    current = folder
    subfolders = _subfolders(current)
    while len(subfolders) == 1:
        current = os.path.join(current, subfolders[0])
        subfolders = _subfolders(current)
    return current if subfolders else folder


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not _is_hidden(entry.name) and entry.is_dir())
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error


def _walk(directory: str, skipped: Counter[str]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename}: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(directory, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            # A link back to a folder above: following it once more would never end.
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden = sum(map(_is_hidden, subfolders))
        if hidden:
            skipped["hidden folder"] += hidden
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
        yield from (os.path.join(folder, name) for name in names)


def _kind_if_no_image(path: str) -> str | None:
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1].lower()
    if name.startswith(".") or name.lower() in _JUNK_FILES:
        return "hidden"
    return None if extension in IMAGE_EXTENSIONS else _readable(extension or "no extension")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        # A dangling link: it stays listed, so that reading it becomes a rejection that is counted.
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _readable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace(os.sep, "/")
