"""Planning: formats told, units cut, ids that stay, plans kept as files; on real files of each format."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import itertools
import os
import pickle
import shutil
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import InputError, RunError
from pipelines import storage, tfrecord, units
from pipelines.formats import detect_format, format_of_content, list_input
from pipelines.records import Failure, ImageRecord, ShardError
from pipelines.units import InputConfig, WorkUnit

CLASSES = ("Negative", "Positive")


def write_tfrecord(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    examples = ({tfrecord.IMAGE_ENCODED: b"x", tfrecord.IMAGE_FILENAME: f"{n}.jpg"} for n in range(count))
    path.write_bytes(b"".join(tfrecord.frame(tfrecord.encode_example(example)) for example in examples))


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode("utf-8", "surrogateescape"))


def plan(pattern: object, **options) -> list[WorkUnit]:
    return list(units.plan_units(InputConfig(str(pattern), **options)))


def read(pattern: object, **options) -> list[ImageRecord | Failure]:
    return [image for unit in plan(pattern, **options) for image in units.read_unit_images(unit, CLASSES)]


def labels(images: list[ImageRecord | Failure]) -> list[str | None]:
    return [image.label for image in images if isinstance(image, ImageRecord)]


@pytest.fixture
def formats(tmp_path: Path) -> Path:
    """One input of each format, each with some side files."""
    root = tmp_path / "input"
    write_images(root / "folder", "Positive/1.JPG", "Negative/2.png", "Negative/Riß.webp")
    write_tfrecord(root / "tfrecord" / "a-00000-of-00002.tfrecord", 3)
    write_tfrecord(root / "tfrecord" / "a-00001-of-00002.tfrecord", 2)
    for name in ("tar", "parquet", "manifest"):
        (root / name).mkdir()
    write_tar(root / "tar" / "a.tar", ["Positive/1.jpg", "2.jpg"])
    write_tar(root / "tar" / "b.tar.gz", ["Positive/1.jpg"])
    table = pa.table({"image": [b"%d" % n for n in range(10)], "label": ["Positive"] * 10, "y": ["Negative"] * 10})
    pq.write_table(table, root / "parquet" / "a.parquet", row_group_size=3)
    write_images(root / "manifest", "Positive/1.jpg", "Negative/2.jpg")
    (root / "manifest" / "list.csv").write_text("path,label,y\nPositive/1.jpg,1,Negative\nNegative/2.jpg,Negative,0\n")
    for folder in root.iterdir():
        for side in ("LICENSE", "README.md", "dataset.json", "notes.txt", ".hidden.jpg", "_tmp.tar"):
            (folder / side).write_text('{"classes": [],\n"path": 1}' if side == "dataset.json" else "text\n")
    return root


def pattern_of(formats: Path, kind: str) -> Path:
    return formats / "manifest" / "list.csv" if kind == "manifest" else formats / kind


KINDS = ("folder", "tfrecord", "tar", "parquet", "manifest")


class TestFormats:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_is_told(self, formats: Path, kind: str) -> None:
        assert detect_format(str(pattern_of(formats, kind))) == kind
        assert {unit.format for unit in plan(pattern_of(formats, kind))} == {kind}
        assert plan(pattern_of(formats, kind), format=kind) == plan(pattern_of(formats, kind))

    def test_format_given_for_a_name_that_says_nothing(self, tmp_path: Path) -> None:
        write_tfrecord(tmp_path / "part", 0)
        assert [unit.format for unit in plan(tmp_path / "part", format="tfrecord")] == ["tfrecord"]
        with pytest.raises(InputError, match="no tfrecord files"):
            plan(tmp_path, format="tfrecord")

    @pytest.mark.parametrize("kind", ["tfrecord", "tar", "parquet"])
    def test_names_that_say_nothing(self, formats: Path, kind: str) -> None:
        for number, path in enumerate(sorted((formats / kind).glob("a*"))):
            path.rename(formats / kind / f"train-{number:05d}-of-00002")
        (formats / kind / "b.tar.gz").unlink(missing_ok=True)
        assert {unit.source for unit in plan(formats / kind)} >= {"train-00000-of-00002"}
        assert detect_format(f"{formats / kind}/train-*") == kind

    def test_content_decides_over_the_name(self, formats: Path) -> None:
        (formats / "tar" / "b.tar.gz").unlink()
        (formats / "tar" / "a.tar").rename(formats / "tar" / "a.parquet")
        assert detect_format(str(formats / "tar")) == "tar"

    @pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
    def test_content_of_tars(self, compress) -> None:
        for names in (["a.jpg"], []):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as archive:
                for name in names:
                    archive.addfile(tarfile.TarInfo(name))
            assert format_of_content(compress(stream.getvalue())) == "tar"

    @pytest.mark.parametrize("head", [b"", b"text", b"\x1f\x8b\x08", b"PAR", bytes(12), os.urandom(3000) + b"\xff"])
    def test_content_of_nothing_known(self, head: bytes) -> None:
        assert format_of_content(head) is None

    def test_mixed_formats_are_refused(self, formats: Path) -> None:
        with pytest.raises(
            InputError, match=r"several formats at .*: \d folder .*, 1 parquet \(a\.parquet\), .*--format"
        ):
            plan(formats)
        assert {unit.source for unit in plan(formats, format="tar")} == {"tar/a.tar", "tar/b.tar.gz"}

    def test_damaged_first_shard_does_not_hide_the_format(self, tmp_path: Path) -> None:
        write_tfrecord(tmp_path / "b.tfrecord", 1)
        (tmp_path / "a.tfrecord").write_bytes(b"garbage")
        assert [unit.source for unit in plan(tmp_path)] == ["a.tfrecord", "b.tfrecord"]

    def test_nothing_usable(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("text")
        with pytest.raises(InputError, match=r"nothing at .* is of a format that is read .*WebP.*; found README\.md"):
            plan(tmp_path)
        with pytest.raises(InputError, match="no file found"):
            plan(tmp_path / "nope" / "*.jpg")
        with pytest.raises(InputError, match="no tar files at"):
            plan(tmp_path, format="tar")
        for options in ({"format": "zip"}, {"labels": "x"}, {"labels": "column:"}, {"images_per_unit": 0}):
            with pytest.raises(InputError):
                plan(tmp_path, **options)


class TestPlan:
    @pytest.mark.parametrize("kind", KINDS)
    def test_ids_names_and_digest_stay_when_the_input_moves(self, formats: Path, kind: str, tmp_path: Path) -> None:
        def identity(root: Path) -> tuple[object, ...]:
            pattern = pattern_of(root, kind)
            return (
                [unit.name for unit in plan(pattern)],
                read(pattern),
                units.listing_digest(InputConfig(str(pattern))),
            )

        before = identity(formats)
        assert len(before[1]) == {"folder": 3, "tfrecord": 5, "tar": 3, "parquet": 10, "manifest": 2}[kind]  # type: ignore[arg-type]
        shutil.move(formats, tmp_path / "a [1] b")
        assert identity(tmp_path / "a [1] b") == before

    @pytest.mark.parametrize("kind", KINDS)
    def test_digest_tells_changes(self, formats: Path, kind: str) -> None:
        config = InputConfig(str(pattern_of(formats, kind)))
        before = units.listing_digest(config)
        assert units.listing_digest(dataclasses.replace(config, labels="none")) != before
        file = Path(list_input(config.pattern).files[0].path)
        if kind == "manifest":
            file.write_bytes(file.read_bytes().replace(b"1,Neg", b"0,Neg"))
        else:
            file.write_bytes(file.read_bytes() + b"\0")
        assert units.listing_digest(config) != before

    def test_folder_units(self, formats: Path) -> None:
        first, second = plan(formats / "folder", images_per_unit=2)
        assert [file.image_id for file in first.files + second.files] == [
            "Negative/2.png", "Negative/Riß.webp", "Positive/1.JPG"
        ]  # fmt: skip
        assert (first.source, second.source) == ("Negative", "Positive")
        assert first.size == sum(os.path.getsize(file.path) for file in first.files)
        assert first.name.startswith("000000-")
        assert len(first.name) == 15
        assert plan(formats / "folder")[0].source == "."
        images = list(units.read_unit_images(second, CLASSES))
        assert images == [ImageRecord("Positive/1.JPG", "Positive", 2, b"Positive/1.JPG", None)]

    def test_same_base_names_and_odd_names_are_unique(self, tmp_path: Path) -> None:
        long = "n" * 251 + ".jpg"
        bad = b"bad\xff.jpg".decode("utf-8", "surrogateescape")
        write_images(tmp_path / "in", "a/1.jpg", "b/1.jpg", f"a/{long}", f"a/{bad}", "a/bad\\xff.jpg")
        for images in (read(f"{tmp_path}/in/*/*.jpg"), read(tmp_path / "in", images_per_unit=1)):
            ids = [image.image_id for image in images]
            assert len(set(ids)) == len(ids) == 5
            assert {"a/1.jpg", "b/1.jpg", f"a/{long}"} <= set(ids)
            assert all(isinstance(image, ImageRecord) and image.image_id.encode() for image in images)

    def test_single_file_and_relative_pattern(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_images(tmp_path / "in", "a/1.jpg")
        monkeypatch.chdir(tmp_path / "in")
        for pattern in ("a/1.jpg", "a", "./a/*.jpg", "../in/a", f"{tmp_path}/in/a/"):
            (unit,) = plan(pattern)
            assert [file.image_id for file in unit.files] == ["1.jpg"]
            assert os.path.isabs(unit.files[0].path)
            assert Path(unit.files[0].path).read_bytes() == b"a/1.jpg"

    def test_parquet_units_follow_row_groups(self, formats: Path) -> None:
        found = plan(formats / "parquet", images_per_unit=5)
        assert [unit.row_groups for unit in found] == [(0, 2), (2, 4)]
        assert len({unit.name[7:] for unit in found}) == 2
        assert [image.position for image in read(formats / "parquet", images_per_unit=5)] == list(range(10))
        assert [unit.row_groups for unit in plan(formats / "parquet", images_per_unit=9)] == [(0, 3), (3, 4)]

    def test_empty_and_damaged_shards_are_units(self, formats: Path) -> None:
        write_tfrecord(formats / "tfrecord" / "empty.tfrecord", 0)
        write_tar(formats / "tar" / "empty.tar", [])
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), formats / "parquet" / "empty.parquet")
        (formats / "manifest" / "list.csv").write_text("path,label\n")
        for kind in ("tfrecord", "tar", "parquet", "manifest"):
            last = plan(pattern_of(formats, kind))[-1]
            assert list(units.read_unit_images(last, CLASSES)) == []
        (formats / "parquet" / "cut.parquet").write_bytes((formats / "parquet" / "a.parquet").read_bytes()[:-9])
        _, cut, _ = plan(formats / "parquet")
        assert (cut.source, cut.row_groups) == ("cut.parquet", None)
        with pytest.raises(ShardError, match=r"cut\.parquet: "):
            list(units.read_unit_images(cut, CLASSES))

    def test_parquet_column_that_is_missing(self, formats: Path) -> None:
        with pytest.raises(InputError, match=r"a\.parquet: no column 'nope'; the columns are: image, label, y"):
            plan(formats / "parquet", labels="column:nope")

    def test_ten_thousand_shards_plan_fast(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(10_000):
            (tmp_path / f"s-{number:05d}.tfrecord").touch()
        write_tfrecord(tmp_path / "s-00000.tfrecord", 1)
        opened = []
        original = storage.open_input
        monkeypatch.setattr(storage, "open_input", lambda path: opened.append(path) or original(path))
        start = time.process_time()
        assert len(plan(tmp_path)) == 10_000
        assert time.process_time() - start < 2
        assert len(opened) == 1


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("folder", "auto", [None, None, None]),
        ("folder", "from-folder", ["Negative", "Negative", "Positive"]),
        ("tar", "auto", [None, None, None]),
        ("tar", "from-folder", ["Positive", None, "Positive"]),
        ("tfrecord", "from-folder", [None] * 5),
        ("parquet", "auto", ["Positive"] * 10),
        ("parquet", "none", [None] * 10),
        ("parquet", "column:y", ["Negative"] * 10),
        ("manifest", "auto", ["Positive", "Negative"]),
        ("manifest", "none", [None, None]),
        ("manifest", "from-folder", ["Positive", "Negative"]),
        ("manifest", "column:y", ["Negative", "Negative"]),
    ],
)
def test_labels(formats: Path, kind: str, options: str, expected: list[str | None]) -> None:
    assert labels(read(pattern_of(formats, kind), labels=options)) == expected


def test_label_column_of_a_format_without_columns(formats: Path) -> None:
    with pytest.raises(InputError, match="column:y needs Parquet files or a manifest, not tar"):
        plan(formats / "tar", labels="column:y")


class TestManyShards:
    """Of many small shards, neighbours share a work unit."""

    @pytest.fixture(autouse=True)
    def few_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(units, "MANY_SHARDS", 4)

    def write(self, root: Path, count: int) -> None:
        for shard in range(count):
            write_tfrecord(root / f"{shard % 2}" / f"{shard:02d}.tfrecord", 2)

    def test_few_shards_have_a_unit_each(self, tmp_path: Path) -> None:
        self.write(tmp_path, 4)
        assert [unit.source for unit in plan(tmp_path)] == [
            *("0/00.tfrecord", "0/02.tfrecord", "1/01.tfrecord", "1/03.tfrecord")
        ]

    def test_neighbours_are_read_as_if_each_were_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(tmp_path / "in", 22)
        found = plan(tmp_path / "in")
        assert [len(unit.files) for unit in found] == [5, 5, 5, 5, 2]
        assert [unit.source for unit in found] == ["0", "0", ".", "1", "1"]
        assert sum(unit.size for unit in found) == sum(file.stat().st_size for file in (tmp_path / "in").rglob("*.*d"))
        written = units.write_plan(found, f"{tmp_path}/plan")
        assert [units.read_unit(f"{tmp_path}/plan", place) for place in written] == found
        together = read(tmp_path / "in")
        monkeypatch.setattr(units, "MANY_SHARDS", 22)
        assert together == read(tmp_path / "in")

    def test_a_unit_of_many_is_no_larger_than_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(tmp_path, 22)
        (size,) = {file.stat().st_size for file in tmp_path.rglob("*.tfrecord")}
        monkeypatch.setattr(units, "SHARED_UNIT_BYTES", 3 * size)
        write_tfrecord(tmp_path / "0" / "15-large.tfrecord", 40)
        assert [len(unit.files) for unit in plan(tmp_path)] == [3, 3, 2, 0, 3, 3, 3, 3, 2]

    def test_shards_that_are_damaged_do_not_hide_their_neighbours(self, tmp_path: Path) -> None:
        self.write(tmp_path, 22)
        (unit, *_) = plan(tmp_path)
        whole = (tmp_path / "0/02.tfrecord").read_bytes()
        (tmp_path / "0/02.tfrecord").write_bytes(whole[:-1])
        (tmp_path / "0/06.tfrecord").unlink()
        images = []
        with pytest.raises(ShardError) as raised:
            images.extend(units.read_unit_images(unit, CLASSES))
        assert [(image.source[:4], image.position) for image in images] == [
            *(("0/00", 0), ("0/00", 1), ("0/02", 0), ("0/04", 0), ("0/04", 1), ("0/08", 0), ("0/08", 1))
        ]
        assert list(raised.value.by_source) == ["0/02.tfrecord", "0/06.tfrecord"]
        copy = pickle.loads(pickle.dumps(raised.value))
        assert (copy.code, str(copy), copy.by_source) == ("truncated", str(raised.value), raised.value.by_source)


class TestPlanFiles:
    @pytest.mark.parametrize("kind", KINDS)
    def test_round_trip(self, formats: Path, kind: str, tmp_path: Path) -> None:
        found = plan(pattern_of(formats, kind), images_per_unit=2)
        directory = f"{tmp_path}/run/plan"
        written = units.write_plan(found, directory)
        assert list(units.places(directory)) == written
        assert [units.read_unit(directory, place) for place in reversed(written)] == found[::-1]
        assert pickle.loads(pickle.dumps((found, written))) == (found, written)
        assert [place.size for place in written] == [unit.size for unit in found]

    def test_rolls_and_keeps_names_that_are_no_unicode(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(units, "PLAN_FILE_BYTES", 1500)
        bad = b"bad\xff.jpg".decode("utf-8", "surrogateescape")
        write_images(tmp_path / "in", bad, "Riß.jpg", *(f"{n}.jpg" for n in range(20)))
        found = plan(tmp_path / "in", images_per_unit=1)
        written = units.write_plan(found, f"{tmp_path}/plan")
        files = sorted({place.file for place in written})
        assert files[:2] == ["plan-00000.jsonl", "plan-00001.jsonl"]
        assert all(os.path.getsize(tmp_path / "plan" / name) <= 1500 for name in files)
        assert [units.read_unit(f"{tmp_path}/plan", place) for place in written] == found
        ends = {name: sum(p.length for p in group) for name, group in itertools.groupby(written, lambda p: p.file)}
        assert ends == {name: os.path.getsize(tmp_path / "plan" / name) for name in files}

    def test_plan_without_its_index_is_not_whole(self, formats: Path, tmp_path: Path) -> None:
        directory = f"{tmp_path}/plan"
        assert not units.has_plan(directory)
        (place,) = units.write_plan(plan(formats / "folder"), directory)
        assert units.has_plan(directory)
        (tmp_path / "plan" / units.INDEX_NAME).unlink()
        assert not units.has_plan(directory)
        with pytest.raises(RunError, match="no whole plan"):
            list(units.places(directory))
        with pytest.raises(RunError, match="stands where 000000-other should"):
            units.read_unit(directory, dataclasses.replace(place, name="000000-other"))
        with pytest.raises(RunError, match="no work unit"):
            units.read_unit(directory, dataclasses.replace(place, offset=3))
        (tmp_path / "plan" / place.file).unlink()
        with pytest.raises(RunError, match="no work unit"):
            units.read_unit(directory, place)


def test_input_in_a_bucket(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    write_tfrecord(tmp_path / "a.tfrecord", 2)
    memory.pipe_file("/in/shards/a.tfrecord", (tmp_path / "a.tfrecord").read_bytes())
    memory.pipe_file("/in/shards/_tmp/b.tfrecord", b"unfinished")
    memory.pipe_file("/in/images/p/1.jpg", b"jpeg")
    local = read(tmp_path)
    assert read("memory://in/shards") == local
    assert read("memory://in/shards/*.tfrecord") == local
    (image,) = read("memory://in/images/", labels="from-folder")
    assert image == ImageRecord("p/1.jpg", "p", 0, b"jpeg", "p")
