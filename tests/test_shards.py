"""The readers of files, TFRecord, tar and Parquet on real files: whole, labelled, odd, cut and damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import InputError
from pipelines import parquet, shards, tar, tfrecord
from pipelines.records import Failure, ImageRecord, ShardError
from pipelines.shards import FileEntry

CLASSES = ("Negative", "Positive")


def read_until_error(images: Iterator[ImageRecord | Failure]) -> tuple[list[ImageRecord | Failure], ShardError | None]:
    found = []
    try:
        for image in images:
            found.append(image)
    except ShardError as error:
        return found, error
    return found, None


def write_tar(path: Path, members: list[tuple[str, bytes]], **options) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_tfrecord(path: Path, examples: list[dict]) -> Path:
    path.write_bytes(b"".join(tfrecord.frame(tfrecord.encode_example(example)) for example in examples))
    return path


def labels(images) -> list[str | None]:
    return [image.label for image in images]


def ids(images) -> list[str]:
    return [image.image_id for image in images]


class TestFiles:
    def test_order_bytes_and_failures(self, tmp_path: Path) -> None:
        long = "é" * 125 + "x.jpg"
        assert len(long.encode()) == 255
        (tmp_path / long).write_bytes(b"one")
        (tmp_path / "empty.png").write_bytes(b"")
        (tmp_path / "folder.jpg").mkdir()
        names = [long, "gone.jpg", "empty.png", "folder.jpg", "nul\0.jpg"]
        entries = [FileEntry(f"{tmp_path}/{name}", name, ".", "Positive") for name in names]
        images = list(shards.read_files(entries))
        assert [image.position for image in images] == [0, 1, 2, 3, 4]
        assert images[0] == ImageRecord(long, ".", 0, b"one", "Positive")
        assert images[2] == ImageRecord("empty.png", ".", 2, b"", "Positive")
        codes = [image.code for image in images if isinstance(image, Failure)]
        assert codes == ["missing", "not-a-file", "unreadable"]
        assert all("\n" not in image.message for image in images if isinstance(image, Failure))

    def test_huge_file_is_not_read_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "MAX_IMAGE_BYTES", 1000)
        for size in (1000, 1001):
            (tmp_path / f"{size}.jpg").write_bytes(bytes(size))
        entries = [FileEntry(f"{tmp_path}/{size}.jpg", str(size), ".") for size in (1000, 1001)]
        whole, refused = shards.read_files(entries)
        assert isinstance(whole, ImageRecord)
        assert isinstance(refused, Failure)
        assert refused.code == "too-large"

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
    def test_forbidden_file_as_nobody(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"secret")
        (tmp_path / "a.jpg").chmod(0)
        script = (
            "import os, sys; from pipelines import shards; os.setuid(65534)\n"
            "image, = shards.read_files([shards.FileEntry(sys.argv[1], 'a', '.')]); print(image.code)"
        )
        for folder in [tmp_path, *tmp_path.parents][:-2]:
            folder.chmod(folder.stat().st_mode | 0o055)
        done = subprocess.run(
            [sys.executable, "-c", script, f"{tmp_path}/a.jpg"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "forbidden"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Positive", "Positive"),
        (b"Negative\n", "Negative"),
        ("unknown", "unknown"),
        ("1", "Positive"),
        ("7", "7"),
        (1, "Positive"),
        (1.0, "Positive"),
        (2, None),
        (-1, None),
        (None, None),
        ("  ", None),
        ([1], None),
    ],
)
def test_resolve_label(value: object, expected: str | None) -> None:
    assert shards.resolve_label(value, CLASSES) == expected


def test_a_class_named_like_a_number_is_itself() -> None:
    assert shards.resolve_label("1", ("1", "0")) == "1"


def test_unique_names_also_where_the_suffix_is_taken() -> None:
    unique = shards.UniqueNames()
    names = [unique.make(name, position) for position, name in enumerate(["a", "a#2", "a", "a#2"])]
    assert names[:2] == ["a", "a#2"]
    assert len(set(names)) == 4


class TestTfrecord:
    def test_ids_and_labels(self, tmp_path: Path) -> None:
        image = {tfrecord.IMAGE_ENCODED: b"jpeg"}
        examples = [
            {**image, tfrecord.IMAGE_FILENAME: "Riß/1.jpg", tfrecord.IMAGE_TEXT: "Positive", tfrecord.IMAGE_LABEL: 0},
            {**image, tfrecord.IMAGE_FILENAME: "Riß/1.jpg", tfrecord.IMAGE_LABEL: 1},
            {**image, tfrecord.IMAGE_LABEL: 5},
            {tfrecord.IMAGE_TEXT: "Positive"},
            {tfrecord.IMAGE_ENCODED: 3},
        ]
        path = write_tfrecord(tmp_path / "a.tfrecord", examples)
        with path.open("ab") as stream:
            stream.write(tfrecord.frame(b"\xff garbage"))
        images = list(shards.read_tfrecord(str(path), "a.tfrecord", CLASSES))
        assert images[0] == ImageRecord("a.tfrecord/Riß/1.jpg", "a.tfrecord", 0, b"jpeg", "Positive")
        assert images[1] == ImageRecord("a.tfrecord/Riß/1.jpg#1", "a.tfrecord", 1, b"jpeg", "Positive")
        assert images[2] == ImageRecord("a.tfrecord#2", "a.tfrecord", 2, b"jpeg", None)
        assert [image.code for image in images[3:]] == ["no-image", "no-image", "bad-record"]
        assert [image.position for image in images] == list(range(6))

    def test_empty_cut_and_gone(self, tmp_path: Path) -> None:
        path = write_tfrecord(tmp_path / "a.tfrecord", [{tfrecord.IMAGE_ENCODED: bytes(100)}] * 3)
        path.write_bytes(path.read_bytes()[:-1])
        images, error = read_until_error(shards.read_tfrecord(str(path), "a", CLASSES))
        assert len(images) == 2
        assert error is not None
        assert error.code == "truncated"
        assert str(error).startswith("a: record 2 ")
        path.write_bytes(b"")
        assert list(shards.read_tfrecord(str(path), "a", CLASSES)) == []
        path.unlink()
        _, error = read_until_error(shards.read_tfrecord(str(path), "a", CLASSES))
        assert error is not None
        assert error.code == "missing"
        _, error = read_until_error(shards.read_tfrecord(str(tmp_path), "a", CLASSES))
        assert error is not None
        assert error.code == "unreadable"


COMPRESSIONS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, bz2.compress, lzma.compress]
MEMBERS = [(f"s/{number:03d}.jpg", os.urandom(700)) for number in range(12)]


class TestTar:
    @pytest.mark.parametrize("compress", COMPRESSIONS)
    @pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_plain_images(self, tmp_path: Path, compress, dialect: int) -> None:
        members = [*MEMBERS, ("README.md", b"text"), ("s/._001.jpg", b"AppleDouble")]
        path = write_tar(tmp_path / "a.tar", members, format=dialect)
        path.write_bytes(compress(path.read_bytes()))
        images = list(tar.read_tar(str(path), "a.tar", CLASSES))
        assert images == [
            ImageRecord(f"a.tar/{name}", "a.tar", position, data) for position, (name, data) in enumerate(MEMBERS)
        ]

    def test_webdataset(self, tmp_path: Path) -> None:
        members = [
            ("./a/1.cls", b"1"),
            ("./a/1.jpg", b"x"),
            ("./a/2.jpg", b"x"),
            ("./a/2.cls", b"Negative\n"),
            ("./b/2.png", b"x"),
            ("./b/2.json", b'{"caption": "?", "class": 1}'),
            ("./b/3.left.jpg", b"x"),
            ("./b/3.right.JPEG", b"x"),
            ("./b/3.json", b'{"label": "Positive"}'),
            ("./b/4.jpg", b"x"),
            ("./b/4.json", b"not JSON"),
            ("./b/5.jpg", b"x"),
            ("./b/5.cls", b"9"),
        ]
        path = write_tar(tmp_path / "a.tar", members)
        images = list(tar.read_tar(str(path), "a.tar", CLASSES))
        assert labels(images) == [
            "Positive", "Negative", "Positive", "Positive", "Positive", None, "9"
        ]  # fmt: skip
        assert ids(images)[3:5] == ["a.tar/b/3.left.jpg", "a.tar/b/3.right.JPEG"]

    def test_names_that_share_a_key_stay_few_in_memory(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", [(f"photo.{n:04d}.jpg", bytes(100_000)) for n in range(400)])
        tracemalloc.start()
        try:
            count = sum(1 for _ in tar.read_tar(str(path), "a.tar", CLASSES))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert count == 400
        assert peak < 10e6

    def test_odd_names_links_and_repeats(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
            for name in ("Riß.jpg", "bad\udcff.jpg", "d" * 120 + "/" + "n" * 251 + ".jpg", "Riß.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"x"))
            for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
                info = tarfile.TarInfo(f"link{kind!r}.jpg")
                info.type, info.linkname = kind, "Riß.jpg"
                archive.addfile(info)
            info = tarfile.TarInfo("folder.jpg")
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        images = list(tar.read_tar(str(path), "t", CLASSES))
        assert ids(images)[:4] == ["t/Riß.jpg", "t/bad\\xff.jpg", f"t/{'d' * 120}/{'n' * 251}.jpg", "t/Riß.jpg#3"]
        assert [image.code for image in images[4:]] == ["link", "link"]

    @pytest.mark.parametrize("cut", [0, 100, 512, 700, 512 * 3, 512 * 3 + 5, 512 * 9, 512 * 12, 512 * 36 - 1, 512 * 36])
    def test_cut(self, tmp_path: Path, cut: int) -> None:
        path = write_tar(tmp_path / "a.tar", MEMBERS)
        path.write_bytes(path.read_bytes()[:cut])
        images, error = read_until_error(tar.read_tar(str(path), "a.tar", CLASSES))
        assert error is not None
        assert error.code == "truncated"
        # A header and two blocks of data each; of the last block only the first 188 bytes are data.
        assert len(images) == (cut + 512 - 188) // (512 * 3)
        assert images == [ImageRecord(f"a.tar/{n}", "a.tar", i, d) for i, (n, d) in enumerate(MEMBERS[: len(images)])]

    @pytest.mark.parametrize("compress", COMPRESSIONS[1:])
    def test_cut_compressed(self, tmp_path: Path, compress) -> None:
        path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", os.urandom(300_000)) for n in range(12)])
        data = compress(path.read_bytes())
        path.write_bytes(data[: len(data) * 2 // 3])
        images, error = read_until_error(tar.read_tar(str(path), "a.tar", CLASSES))
        assert error is not None
        assert error.code == "truncated"
        assert 0 < len(images) < 12

    @pytest.mark.parametrize("compress", COMPRESSIONS)
    def test_damaged(self, tmp_path: Path, compress) -> None:
        path = write_tar(tmp_path / "a.tar", MEMBERS)
        data = bytearray(compress(path.read_bytes()))
        place = 512 * 6 + 10 if compress is bytes else len(data) // 2
        data[place] ^= 0xFF
        path.write_bytes(data)
        images, error = read_until_error(tar.read_tar(str(path), "a.tar", CLASSES))
        assert error is not None
        assert error.code == "corrupt"
        if compress is bytes:
            assert len(images) == 2

    def test_no_tar_at_all_and_gone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        path.write_bytes(b"this is no tar" * 100)
        assert read_until_error(tar.read_tar(str(path), "a", CLASSES))[1].code == "corrupt"  # type: ignore[union-attr]
        path.unlink()
        assert read_until_error(tar.read_tar(str(path), "a", CLASSES))[1].code == "missing"  # type: ignore[union-attr]

    def test_hole_of_zeros_is_not_the_end(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", MEMBERS)
        data = bytearray(path.read_bytes())
        data[512 * 6 : 512 * 7] = bytes(512)
        path.write_bytes(data)
        images, error = read_until_error(tar.read_tar(str(path), "a.tar", CLASSES))
        assert len(images) == 2
        assert error is not None
        assert error.code == "corrupt"

    def test_empty_and_joined(self, tmp_path: Path) -> None:
        empty = write_tar(tmp_path / "empty.tar", [])
        assert list(tar.read_tar(str(empty), "e", CLASSES)) == []
        one, two = (write_tar(tmp_path / f"{n}.tar", MEMBERS[n : n + 2]).read_bytes() for n in (0, 2))
        joined = tmp_path / "joined.tar"
        joined.write_bytes(one + two)
        assert ids(tar.read_tar(str(joined), "j", CLASSES)) == [f"j/{name}" for name, _ in MEMBERS[:4]]
        joined.write_bytes(gzip.compress(one[:1000]) + gzip.compress(one[1000:]))
        assert ids(tar.read_tar(str(joined), "j", CLASSES)) == [f"j/{name}" for name, _ in MEMBERS[:2]]


def write_parquet(path: Path, table: pa.Table, rows: int = 4) -> Path:
    pq.write_table(table, path, row_group_size=rows)
    return path


class TestParquet:
    def test_row_groups_of_binary_and_names(self, tmp_path: Path) -> None:
        table = pa.table(
            {"id": range(10), "jpg": [b"%d" % n for n in range(10)], "label": ["Negative", "Positive"] * 5}
        )
        path = write_parquet(tmp_path / "a.parquet", table)
        images = list(parquet.read_parquet(str(path), "a.parquet", (1, 3), None, None, CLASSES))
        assert images == [
            ImageRecord(f"a.parquet#{n}", "a.parquet", n, b"%d" % n, CLASSES[n % 2]) for n in range(4, 10)
        ]

    def test_hugging_face(self, tmp_path: Path) -> None:
        features = {"image": {"_type": "Image"}, "label": {"names": ["crack", "fine"], "_type": "ClassLabel"}}
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = [
            {"bytes": b"a", "path": "Riß.jpg"},
            {"bytes": b"b", "path": None},
            {"bytes": None, "path": "x.jpg"},
            None,
        ]
        table = pa.table({"image": pa.array(rows, kind), "label": pa.array([0, 1, -1, None], pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = write_parquet(tmp_path / "a.parquet", table)
        images = list(parquet.read_parquet(str(path), "a", None, None, None, CLASSES))
        assert images[0] == ImageRecord("a/Riß.jpg#0", "a", 0, b"a", "crack")
        assert images[1] == ImageRecord("a#1", "a", 1, b"b", "fine")
        assert [image.code for image in images[2:]] == ["no-image", "no-image"]

    def test_integer_labels_without_names_are_indices(self, tmp_path: Path) -> None:
        table = pa.table({"image": [b"a", b"b", b"c", b"d"], "y": pa.array([1, 0, 5, None], pa.float64())})
        path = write_parquet(tmp_path / "a.parquet", table)
        images = parquet.read_parquet(str(path), "a", None, "image", "y", CLASSES)
        assert labels(images) == ["Positive", "Negative", None, None]

    @pytest.mark.parametrize(
        ("image", "label", "message"),
        [
            ("nope", None, "no column 'nope'; the columns are: a, b, n"),
            (None, "nope", "no column 'nope'"),
            ("n", None, "holds no image bytes but int64"),
            (None, None, "cannot tell the image column"),
        ],
    )
    def test_columns_that_do_not_fit(self, image: str | None, label: str | None, message: str) -> None:
        schema = pa.schema([("a", pa.binary()), ("b", pa.binary()), ("n", pa.int64())])
        with pytest.raises(InputError, match=message):
            parquet.find_columns(schema, image, label)

    def test_damage(self, tmp_path: Path) -> None:
        table = pa.table({"image": [os.urandom(2000) for _ in range(40)]})
        path = tmp_path / "a.parquet"
        pq.write_table(table, path, row_group_size=10, write_page_checksum=True)
        whole = path.read_bytes()

        def error_of(data: bytes, groups: tuple[int, int] | None = None) -> tuple[int, str | None]:
            path.write_bytes(data)
            images, error = read_until_error(parquet.read_parquet(str(path), "a", groups, None, None, CLASSES))
            return len(images), error and error.code

        assert error_of(whole) == (40, None)
        assert error_of(whole[:-100]) == (0, "truncated")
        assert error_of(b"") == (0, "truncated")
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0xFF
        count, code = error_of(bytes(flipped))
        assert count < 40
        assert code == "corrupt"
        assert error_of(whole, (3, 5)) == (0, "changed")
        path.unlink()
        _, error = read_until_error(parquet.read_parquet(str(path), "a", None, None, None, CLASSES))
        assert error is not None
        assert error.code == "missing"

    def test_large_row_group_stays_on_disk(self, tmp_path: Path) -> None:
        table = pa.table({"image": [os.urandom(100_000) for _ in range(600)]})
        pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=16)
        del table
        before = pa.total_allocated_bytes()
        images = parquet.read_parquet(str(tmp_path / "a.parquet"), "a", None, None, None, CLASSES)
        # What Arrow reads through a Python file is Python's memory, what it decodes its own.
        tracemalloc.start()
        try:
            arrow = max(pa.total_allocated_bytes() - before for _ in images)
            python = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert arrow + python < 25e6

    def test_no_rows(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", pa.table({"image": pa.array([], pa.binary())}))
        assert list(parquet.read_parquet(str(path), "a", (0, 0), None, None, CLASSES)) == []
        assert list(parquet.read_parquet(str(path), "a", None, None, None, CLASSES)) == []


def test_readers_import_neither_tensorflow_nor_beam() -> None:
    heavy = "{'tensorflow', 'apache_beam', 'pyarrow.parquet'}"
    script = f"import sys, pipelines.units; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
