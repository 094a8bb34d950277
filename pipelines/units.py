"""Plan the work units of an input, keep the plan as files, and read a unit's images."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from model.errors import InputError, RunError
from model.spec import canonical_json
from pipelines import parquet, shards, storage, tar
from pipelines.formats import Listing, list_input, relative
from pipelines.manifest import read_manifest
from pipelines.records import Failure, ImageRecord, ShardError
from pipelines.shards import FileEntry, UniqueNames

INDEX_NAME = "places.jsonl"
PLAN_FILE_BYTES = 64 * 2**20

MANY_SHARDS = 256
"""Where an input has more tar or TFRecord files than this, small neighbours are read as one work unit."""
SHARED_UNIT_BYTES = 8 * 2**20
"""So much, at most, such neighbours have together: about as many photos of a few kilobytes as a folder's unit."""

_LABELS = ("auto", "from-folder", "none")
_FOOTER_THREADS = 16
_FOOTER_BATCH = 256


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """What to read and how.

    Attributes:
        pattern: a file, a folder with all its subfolders, or a glob pattern; local or in a bucket.
        format: ``folder``, ``tfrecord``, ``tar``, ``parquet``, ``manifest``, or ``auto``.
        labels: ``auto`` (what records and manifests say; a folder is unlabelled), ``from-folder`` (the name of the
            folder that holds the image), ``none``, or ``column:NAME`` of a Parquet file or manifest.
        image_column: column of the image bytes in Parquet files; None: found by its name and type.
        path_column: column of the image paths in manifests; None: found by its name.
        images_per_unit: files of a folder or manifest, or about as many rows of a Parquet file, per work unit, from 1.

    Raises:
        InputError: an option has no such value.
    """

    pattern: str
    format: str = "auto"
    labels: str = "auto"
    image_column: str | None = None
    path_column: str | None = None
    images_per_unit: int = 1000

    def __post_init__(self) -> None:
        if self.images_per_unit < 1:
            raise InputError(f"images per unit must be 1 or more, not {self.images_per_unit}")
        if self.labels not in _LABELS and not self.label_column:
            raise InputError(f"labels are {', '.join(_LABELS)} or column:NAME, not {self.labels!r}")

    @property
    def label_column(self) -> str | None:
        """NAME of ``column:NAME``, else None."""
        return self.labels.partition(":")[2] if self.labels.startswith("column:") else None


@dataclasses.dataclass(frozen=True, slots=True)
class WorkUnit:
    """What is read, classified and committed together.

    Attributes:
        index: place in the plan, from 0.
        name: index and 8 hexadecimal digits of a hash of what the unit holds; the stem of its files in a run.
        format: ``folder``, ``tfrecord``, ``tar``, ``parquet`` or ``manifest``.
        source: the shard, manifest or folder (of all the files), relative to the input root; ``.`` is the root itself.
        path: the absolute path or URL of the shard or manifest; of the input root for a folder or several shards.
        size: bytes to read; uncompressed for Parquet, 0 where a manifest does not tell.
        row_groups: first row group and the one behind the last; None: the whole file.
        files: the files of a folder's or manifest's unit, or the shards of a unit of several, where ``image_id`` is the
            shard's ``source``.
        labels, image_column: as in :class:`InputConfig`.
        first: position of the first of ``files`` in the input's sorted files, or in the manifest.
    """

    index: int
    name: str
    format: str
    source: str
    path: str
    size: int
    row_groups: tuple[int, int] | None = None
    files: tuple[FileEntry, ...] = ()
    labels: str = "auto"
    image_column: str | None = None
    first: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a unit stands in the plan: a range of bytes, its JSON line, of a file in the plan's folder.

    ``offset`` and ``length`` are bytes of that line; ``size`` is the unit's.
    """

    index: int
    name: str
    file: str
    offset: int
    length: int
    size: int


def listing_digest(config: InputConfig, listing: Listing | None = None) -> str:
    """SHA-256 (hexadecimal) of an input: its files' paths relative to the root and sizes, its format, and the options
    for labels and columns; of manifests also the content. It is the same when the input lies elsewhere.

    Raises:
        InputError: nothing usable is there, or a manifest cannot be read.
    """
    listing = listing or list_input(config.pattern, config.format, config.path_column)
    digest = hashlib.sha256()
    options = [listing.format, config.labels, config.image_column, config.path_column]
    digest.update(canonical_json(options).encode())
    for file in listing.files:
        name = relative(file.path, listing.root).encode("utf-8", "surrogateescape")
        digest.update(b"\n%d %s" % (file.size, name))
        if listing.format == "manifest":
            try:
                digest.update(hashlib.sha256(storage.read_bytes(file.path)).digest())
            except OSError as error:
                raise InputError(f"cannot read {file.path}: {error.strerror or error}") from error
    return digest.hexdigest()


def plan_units(config: InputConfig, listing: Listing | None = None) -> Iterator[WorkUnit]:
    """The work units of an input, in the order of its sorted paths; equal input gives equal units.

    A shard without images still is a unit, and so is one that is damaged: reading it tells. Of shards only the first is
    opened, except Parquet, where each file's footer tells its row groups.

    A unit has costs of its own (synced files, a marker, a last batch that is not full), so of more than
    :data:`MANY_SHARDS` tar or TFRecord files neighbours share a unit, up to ``SHARED_UNIT_BYTES`` and up to what leaves
    about ``MANY_SHARDS`` units to spread and to go on from.

    Args:
        config: what to read.
        listing: from :func:`pipelines.formats.list_input`, where the caller has it already.

    Raises:
        InputError: nothing usable is there, formats are mixed, or a column is missing.
    """
    listing = listing or list_input(config.pattern, config.format, config.path_column)
    if config.label_column and listing.format not in ("parquet", "manifest"):
        raise InputError(f"--labels {config.labels} needs Parquet files or a manifest, not {listing.format}")
    if listing.format == "folder":
        units = _folder_units(config, listing)
    elif listing.format == "manifest":
        units = _manifest_units(config, listing)
    elif listing.format == "parquet":
        units = _parquet_units(config, listing)
    else:
        units = _shard_units(listing)
    for index, unit in enumerate(units):
        source = shards.printable(unit.pop("source"))
        files = unit.get("files", ())
        content = canonical_json([source, unit.get("row_groups"), files[0].image_id if files else None])
        name = f"{index:06d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        yield WorkUnit(
            index, name, listing.format, source, labels=config.labels, image_column=config.image_column, **unit
        )


def _shard_units(listing: Listing) -> Iterator[dict[str, Any]]:
    shared = 0
    if len(listing.files) > MANY_SHARDS:
        shared = min(SHARED_UNIT_BYTES, sum(file.size for file in listing.files) // MANY_SHARDS)
    chosen: list[storage.FileInfo] = []
    size = 0
    for file in listing.files:
        if chosen and (not shared or size + file.size > shared):
            yield _unit_of_shards(chosen, listing.root)
            chosen, size = [], 0
        chosen.append(file)
        size += file.size
    yield _unit_of_shards(chosen, listing.root)


def _unit_of_shards(chosen: Sequence[storage.FileInfo], root: str) -> dict[str, Any]:
    if len(chosen) == 1:
        return {"source": relative(chosen[0].path, root), "path": chosen[0].path, "size": chosen[0].size}
    names = [shards.printable(relative(file.path, root)) for file in chosen]
    files = tuple(FileEntry(file.path, name, name) for file, name in zip(chosen, names, strict=True))
    folder = posixpath.commonpath([posixpath.dirname(name) for name in names]) or "."
    return {"source": folder, "path": root, "size": sum(file.size for file in chosen), "files": files}


def _folder_units(config: InputConfig, listing: Listing) -> Iterator[dict[str, Any]]:
    unique = UniqueNames()
    for start in range(0, len(listing.files), config.images_per_unit):
        entries = []
        chosen = listing.files[start : start + config.images_per_unit]
        for position, file in enumerate(chosen, start=start):
            name = shards.printable(relative(file.path, listing.root))
            label = _folder_name(file.path) if config.labels == "from-folder" else None
            entries.append(FileEntry(file.path, unique.make(name, position), posixpath.dirname(name) or ".", label))
        source = posixpath.commonpath([entry.source for entry in entries]) or "."
        size = sum(file.size for file in chosen)
        yield {"source": source, "path": listing.root, "size": size, "files": tuple(entries), "first": start}


def _manifest_units(config: InputConfig, listing: Listing) -> Iterator[dict[str, Any]]:
    unique = UniqueNames()
    for manifest in listing.files:
        entries = read_manifest(manifest.path, config.path_column, config.label_column, listing.root, unique)
        source = relative(manifest.path, listing.root)
        try:
            files = tuple(itertools.islice(entries, config.images_per_unit))
            first = 0
            while True:
                if config.labels == "from-folder":
                    files = tuple(dataclasses.replace(entry, label=_folder_name(entry.path)) for entry in files)
                elif config.labels == "none":
                    files = tuple(dataclasses.replace(entry, label=None) for entry in files)
                yield {"source": source, "path": manifest.path, "size": 0, "files": files, "first": first}
                first += len(files)
                if not (files := tuple(itertools.islice(entries, config.images_per_unit))):
                    break
        except OSError as error:
            raise InputError(f"cannot read {manifest.path}: {error.strerror or error}") from error


def _folder_name(path: str) -> str | None:
    return shards.printable(posixpath.basename(posixpath.dirname(path))) or None


def _parquet_units(config: InputConfig, listing: Listing) -> Iterator[dict[str, Any]]:
    def row_groups(file: storage.FileInfo) -> list[tuple[int, int]] | None:
        return _row_groups(file.path, config)

    with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
        for start in range(0, len(listing.files), _FOOTER_BATCH):
            batch = listing.files[start : start + _FOOTER_BATCH]
            for file, groups in zip(batch, threads.map(row_groups, batch), strict=True):
                unit = {"source": relative(file.path, listing.root), "path": file.path}
                if groups is None:
                    yield {**unit, "size": file.size}
                    continue
                first = rows = size = 0
                for group, (group_rows, group_size) in enumerate(groups, start=1):
                    rows, size = rows + group_rows, size + group_size
                    if rows >= config.images_per_unit:
                        yield {**unit, "size": size, "row_groups": (first, group)}
                        first, rows, size = group, 0, 0
                if first < len(groups) or not groups:
                    yield {**unit, "size": size, "row_groups": (first, len(groups))}


def _row_groups(path: str, config: InputConfig) -> list[tuple[int, int]] | None:
    """Rows and bytes of each row group; None where the file is damaged or gone, which reading it will tell."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_input(path) as stream:
            file = pq.ParquetFile(stream)
            parquet.find_columns(file.schema_arrow, config.image_column, config.label_column)
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in groups]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (pa.ArrowException, OSError):
        return None


def count_images(units: Iterable[WorkUnit]) -> tuple[int, int | None]:
    """Numbers of the units and of the images in them; None where only reading the images would tell.

    Raises:
        InputError: an input cannot be planned.
    """
    number = images = 0
    known = True
    parquet_files = set()
    for unit in units:
        number += 1
        known &= unit.format in ("folder", "manifest", "parquet")
        images += len(unit.files)
        if unit.format == "parquet":
            parquet_files.add(unit.path)
    with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
        for rows in threads.map(_rows, sorted(parquet_files)):
            images += rows or 0
            known &= rows is not None
    return number, images if known else None


def _rows(path: str) -> int | None:
    """Rows of a Parquet file; None where it is damaged or gone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_input(path) as stream:
            return int(pq.read_metadata(stream).num_rows)
    except (pa.ArrowException, OSError):
        return None


def write_plan(units: Iterable[WorkUnit], directory: str) -> list[Place]:
    """Write a plan as JSON lines files of about 64 MiB, and last its index of places, which says that it is whole.

    Raises:
        OSError: a file cannot be written.
    """
    found: list[Place] = []
    lines: list[bytes] = []
    number = offset = 0
    for unit in units:
        line = _to_json(unit)
        if lines and offset + len(line) > PLAN_FILE_BYTES:
            storage.put(storage.join(directory, _plan_file(number)), b"".join(lines))
            number, offset, lines = number + 1, 0, []
        found.append(Place(unit.index, unit.name, _plan_file(number), offset, len(line), unit.size))
        lines.append(line)
        offset += len(line)
    if lines:
        storage.put(storage.join(directory, _plan_file(number)), b"".join(lines))
    index = "".join(f"{json.dumps(dataclasses.astuple(place))}\n" for place in found)
    storage.put(storage.join(directory, INDEX_NAME), index.encode())
    return found


def _plan_file(number: int) -> str:
    return f"plan-{number:05d}.jsonl"


def _to_json(unit: WorkUnit) -> bytes:
    values: dict[str, Any] = {field.name: getattr(unit, field.name) for field in dataclasses.fields(unit)}
    # Most files of a unit differ in the id only: the rest is left out.
    values["files"] = [
        [
            file.image_id,
            None if file.path == storage.join(unit.path, file.image_id) else file.path,
            None if file.source == unit.source else file.source,
            file.label,
        ]
        for file in unit.files
    ]
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def places(directory: str) -> Iterator[Place]:
    """The places of a plan that was written earlier, in order.

    Raises:
        RunError: the plan is not whole: its writer died, or nothing was planned here.
    """
    path = storage.join(directory, INDEX_NAME)
    try:
        index = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise RunError(f"no whole plan in {directory}: {INDEX_NAME} is missing") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = [Place(*json.loads(line)) for line in index.splitlines()]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    yield from found


def plan_digest(directory: str) -> str:
    """SHA-256 (hexadecimal) of a plan's index.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    return hashlib.sha256(storage.read_bytes(storage.join(directory, INDEX_NAME))).hexdigest()


def has_plan(directory: str) -> bool:
    """Whether a whole plan was written here."""
    return storage.exists(storage.join(directory, INDEX_NAME))


def read_unit(directory: str, place: Place) -> WorkUnit:
    """The unit at a place of a plan.

    Raises:
        RunError: the plan's file is gone or is not what the place says.
    """
    try:
        line = storage.read_range(storage.join(directory, place.file), place.offset, place.length)
        values = json.loads(line)
        path, source = values["path"], values["source"]
        values["files"] = tuple(
            FileEntry(file_path or storage.join(path, image_id), image_id, file_source or source, label)
            for image_id, file_path, file_source, label in values["files"]
        )
        values["row_groups"] = tuple(values["row_groups"]) if values["row_groups"] else None
        unit = WorkUnit(**values)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{directory}/{place.file}: no work unit {place.name} at byte {place.offset}: {error}"
        ) from error
    if unit.name != place.name:
        raise RunError(f"{directory}/{place.file}: unit {unit.name} stands where {place.name} should")
    return unit


def read_unit_images(unit: WorkUnit, classes: Sequence[str]) -> Iterator[ImageRecord | Failure]:
    """The images of a unit, one at a time, in its order; positions as the readers of :mod:`pipelines.shards` give them.

    Args:
        unit: what to read.
        classes: the model's class names, for labels that are indices.

    Raises:
        ShardError: a shard is cut, damaged or gone; the images before that place, and those of the unit's other shards,
            have been yielded.
    """
    if unit.format in ("folder", "manifest"):
        for image in shards.read_files(unit.files, unit.first):
            # A folder's name is a class's name, also where it is a number; a column may hold indices.
            if unit.format == "manifest" and unit.labels != "from-folder" and isinstance(image, ImageRecord):
                image = dataclasses.replace(image, label=shards.resolve_label(image.label, classes))
            yield image
        return
    errors: dict[str, ShardError] = {}
    for path, source in [(file.path, file.source) for file in unit.files] or [(unit.path, unit.source)]:
        try:
            yield from _read_shard(unit, path, source, classes)
        except ShardError as error:
            errors[source] = error
    if errors:
        raise ShardError.of_shards(errors)


def _read_shard(unit: WorkUnit, path: str, source: str, classes: Sequence[str]) -> Iterator[ImageRecord | Failure]:
    if unit.format == "tfrecord":
        images = shards.read_tfrecord(path, source, classes)
    elif unit.format == "tar":
        images = tar.read_tar(path, source, classes)
    else:
        column = unit.labels.partition(":")[2] or None
        images = parquet.read_parquet(path, source, unit.row_groups, unit.image_column, column, classes)
    if unit.labels not in ("from-folder", "none"):
        yield from images
        return
    for image in images:
        if isinstance(image, ImageRecord):
            inner = image.image_id.removeprefix(f"{source}/")
            label = _folder_name(inner) if unit.labels == "from-folder" and inner != image.image_id else None
            image = dataclasses.replace(image, label=label)
        yield image
