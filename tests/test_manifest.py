"""Manifests as people write them: delimiters, marks, line ends, column names, relative and absolute paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model.errors import InputError
from pipelines.manifest import read_manifest
from pipelines.shards import FileEntry, UniqueNames, read_files


def read(file: Path, content: str | bytes, path: str | None = None, label: str | None = None) -> list[FileEntry]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_manifest(str(file), path, label, str(file.parent)))


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na.jpg,Positive\nb/Riß.jpg,\n",
        "path,label\r\na.jpg,Positive\r\n\r\nb/Riß.jpg,\r\n",
        "\ufeffpath,label\na.jpg,Positive\nb/Riß.jpg,",
        "\n\nid\tLabel\tImage_Path\n1\tPositive\ta.jpg\n2\t\tb/Riß.jpg\n",
        "file;class\na.jpg;Positive\nb/Riß.jpg;\n",
        '"uri","category"\n"a.jpg","Positive"\n"b/Riß.jpg"\n',
        '{"filename": "a.jpg", "target": "Positive"}\n\n{"target": null, "filename": "b/Ri\\u00df.jpg"}\n',
        "path,label\na.jpg,Positive\nb/Riß.jpg,\n".encode("utf-16"),
    ],
)
def test_ways_to_write_the_same(tmp_path: Path, content: str | bytes) -> None:
    assert read(tmp_path / "m.csv", content) == [
        FileEntry(f"{tmp_path}/a.jpg", "a.jpg", "m.csv", "Positive"),
        FileEntry(f"{tmp_path}/b/Riß.jpg", "b/Riß.jpg", "m.csv", None),
    ]


def test_commas_quotes_and_line_breaks_in_paths(tmp_path: Path) -> None:
    entries = read(tmp_path / "m.csv", 'image,class\n"a, ""b"".jpg",x\n"two\nlines.jpg",y\n')
    assert [entry.image_id for entry in entries] == ['a, "b".jpg', "two\nlines.jpg"]


def test_repeated_paths_get_ids_of_their_own(tmp_path: Path) -> None:
    unique = UniqueNames()
    (tmp_path / "m.csv").write_text("path\na.jpg\n./a.jpg\nb.jpg\n")
    entries = [
        entry for _ in range(2) for entry in read_manifest(f"{tmp_path}/m.csv", None, None, str(tmp_path), unique)
    ]
    ids = [entry.image_id for entry in entries]
    assert ids[:3] == ["a.jpg", "a.jpg#1", "b.jpg"]
    assert len(set(ids)) == 6
    assert {entry.path for entry in entries} == {f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"}


def test_absolute_outside_and_remote_paths(tmp_path: Path) -> None:
    inside = f"{tmp_path}/lists/x/a.jpg"
    lines = ["path", inside, "../images/b.jpg", "/elsewhere/c.jpg", "gs://bucket/d.jpg"]
    (tmp_path / "lists").mkdir()
    entries = read(tmp_path / "lists" / "m.csv", "\n".join(lines))
    assert [entry.image_id for entry in entries] == [
        "x/a.jpg", "../images/b.jpg", "/elsewhere/c.jpg", "gs://bucket/d.jpg"
    ]  # fmt: skip
    assert [entry.path for entry in entries] == [inside, f"{tmp_path}/images/b.jpg", *lines[3:]]


def test_manifest_in_a_bucket() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/lists/m.csv", b"path\n../images/a.jpg\n")
    memory.pipe_file("/bucket/images/a.jpg", b"jpeg")
    entries = list(read_manifest("memory://bucket/lists/m.csv", None, None, "memory://bucket/lists"))
    assert entries == [FileEntry("memory://bucket/images/a.jpg", "../images/a.jpg", "m.csv", None)]
    assert [image.encoded for image in read_files(entries)] == [b"jpeg"]  # type: ignore[union-attr]


def test_named_columns_and_numbers(tmp_path: Path) -> None:
    content = '{"path": "no.jpg", "p": "a.jpg", "y": 1.0}\n{"p": "b.jpg", "y": 0}\n'
    entries = read(tmp_path / "m.jsonl", content, path="p", label="y")
    assert [(entry.image_id, entry.label) for entry in entries] == [("a.jpg", "1"), ("b.jpg", "0")]


def test_name_that_is_no_unicode_still_opens(tmp_path: Path) -> None:
    name = b"bad\xff.jpg".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(b"jpeg")
    entries = read(tmp_path / "m.csv", b"path\nbad\xff.jpg\n")
    assert entries[0].image_id == "bad\\xff.jpg"
    assert [image.encoded for image in read_files(entries)] == [b"jpeg"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("name,kind\na.jpg,b\n", {}, "no column of image paths (--path-column); the columns are: name, kind"),
        ("path,kind\na.jpg,b\n", {"label": "y"}, "no column 'y'; the columns are: path, kind"),
        ("path,kind\na.jpg,b\n", {"path": "y"}, "no column 'y'; the columns are: path, kind"),
        ("path,kind\na.jpg,b\n,c\n", {}, "line 3 has no path"),
        ('{"path": "a.jpg"}\n{"path": \n', {}, "line 2 is no JSON"),
        ('{"path": "a.jpg"}\n\n[1]\n', {}, "line 3 is no JSON object"),
        ("path,path\na.jpg,b.jpg\n", {}, "columns named twice: path"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/m.csv: {message}")):
        read(tmp_path / "m.csv", content, **columns)


def test_empty_manifests_have_no_entries(tmp_path: Path) -> None:
    assert read(tmp_path / "m.csv", "") == []
    assert read(tmp_path / "m.csv", "path,label\n") == []
