"""Files are listed, read and put whole, locally and on an object store (fsspec's in-memory one)."""

import os
import threading

import fsspec
import pytest

from model.errors import InputError
from pipelines import storage
from pipelines.storage import FileInfo


@pytest.fixture
def bucket():
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield "memory://bucket"
    filesystem.store.clear()


def test_a_put_makes_the_folders_and_replaces_what_was_there(tmp_path):
    path = str(tmp_path / "a" / "b" / "file")
    storage.put(path, b"one", temporary=str(tmp_path / "_tmp"))
    storage.put(path, b"two", temporary=str(tmp_path / "_tmp"))
    assert storage.read_bytes(path) == b"two"
    assert os.listdir(tmp_path / "_tmp") == []


def test_readers_never_see_a_part_of_a_put(tmp_path):
    path = str(tmp_path / "file")
    contents = {bytes([value]) * 300_000 for value in b"ab"}
    storage.put(path, min(contents))
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for content in contents:
                storage.put(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert storage.read_bytes(path) in contents
    finally:
        stop.set()
        writer.join()


def test_a_put_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(OSError, match="directory"):
        storage.put(str(tmp_path / "target"), b"data")
    assert os.listdir(tmp_path) == ["target"]


def test_a_folder_is_listed_with_its_subfolders_sorted_and_without_hidden_files(tmp_path):
    for name in ("b/2", "a", "b/1", ".hidden", "_cache/x", "c/_d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    expected = [FileInfo(str(tmp_path / name), 2) for name in ("a", "b/1", "b/2")]
    assert storage.list_files(str(tmp_path)) == expected
    assert storage.list_files(f"{tmp_path}/[ab]*") == expected


def test_a_link_to_a_parent_ends_the_walk(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"1")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert [file.path for file in storage.list_files(str(tmp_path))] == [str(tmp_path / "a" / "file")]


def test_a_dangling_link_is_listed_so_that_its_loss_is_counted(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert storage.list_files(str(tmp_path)) == [FileInfo(str(tmp_path / "gone.jpg"), 0)]
    assert storage.list_files(f"{tmp_path}/*.jpg") == [FileInfo(str(tmp_path / "gone.jpg"), 0)]


@pytest.mark.parametrize("name", ["", "nowhere", "*.jpg"])
def test_a_pattern_without_files_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no file found"):
        storage.list_files(str(tmp_path / name))


def test_a_bucket_is_read_and_written_like_a_folder(bucket):
    storage.put(f"{bucket}/run/b", b"two")
    storage.put(f"{bucket}/run/a", b"one")
    assert [file.size for file in storage.list_files(f"{bucket}/run")] == [3, 3]
    assert storage.list_files(f"{bucket}/run/a*") == storage.list_files(f"{bucket}/run")[:1]
    assert storage.list_names(f"{bucket}/run") == ["a", "b"]
    assert storage.list_names(f"{bucket}/nothing") == []
    assert storage.read_range(f"{bucket}/run/b", 1, 2) == b"wo"
    assert storage.exists(f"{bucket}/run/a")
    assert storage.is_directory(f"{bucket}/run")
    storage.delete(f"{bucket}/run")
    assert not storage.exists(f"{bucket}/run/a")


def test_a_scheme_without_a_driver_is_refused_in_a_line():
    with pytest.raises(InputError, match="nosuch://bucket/file"):
        storage.read_bytes("nosuch://bucket/file")


def test_deleting_what_is_not_there_is_no_error(tmp_path):
    storage.delete(str(tmp_path / "nothing"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"")
    storage.delete(str(tmp_path / "folder"))
    assert os.listdir(tmp_path) == []
