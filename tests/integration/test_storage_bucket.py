"""The storage layer against a real Cloud Storage server."""

import os

import pytest

from model.errors import InputError
from pipelines import buckets, storage


def test_objects_are_put_read_listed_copied_and_deleted(bucket, tmp_path):
    storage.put(f"{bucket}/run/a/one", b"first")
    storage.put(f"{bucket}/run/two", b"second")
    storage.put(f"{bucket}/run/empty", b"")
    assert storage.read_bytes(f"{bucket}/run/two") == b"second"
    assert storage.read_range(f"{bucket}/run/two", 2, 3) == b"con"
    assert storage.read_range(f"{bucket}/run/empty", 0, 64) == storage.read_bytes(f"{bucket}/run/empty") == b""
    assert [(file.path, file.size) for file in storage.list_files(f"{bucket}/run")] == [
        (f"{bucket}/run/a/one", 5),
        (f"{bucket}/run/empty", 0),
        (f"{bucket}/run/two", 6),
    ]
    assert storage.list_names(f"{bucket}/run") == ["empty", "two"]
    assert storage.list_entries(f"{bucket}/run") == ["a", "empty", "two"]
    assert storage.list_entries(f"{bucket}/nothing") == []
    assert storage.exists(f"{bucket}/run/a")
    assert storage.is_directory(f"{bucket}/run/a")
    assert not storage.is_directory(f"{bucket}/run/two")
    storage.copy(f"{bucket}/run/two", str(tmp_path / "two"))
    storage.copy(str(tmp_path / "two"), f"{bucket}/copy")
    storage.copy(f"{bucket}/copy", f"{bucket}/second copy#2")
    assert storage.read_bytes(f"{bucket}/second copy#2") == b"second"
    storage.delete(f"{bucket}/run")
    storage.delete(f"{bucket}/run")
    assert [file.path for file in storage.list_files(bucket)] == [f"{bucket}/copy", f"{bucket}/second copy#2"]


def test_a_listing_shows_at_once_what_others_have_written(bucket, storage_server):
    assert storage.list_names(f"{bucket}/commits") == []
    storage.put(f"{bucket}/commits/one", b"")
    assert storage.list_names(f"{bucket}/commits") == ["one"]
    assert storage.exists(f"{bucket}/commits/one")


def test_a_large_object_streams_both_ways(bucket, tmp_path):
    content = os.urandom(2**20) * 60
    with storage.writer(f"{bucket}/large") as stream:
        stream.write(content)
    with storage.open_input(f"{bucket}/large") as stream:
        start = stream.read(10)
        stream.seek(30 * 2**20 + 5)
        middle = stream.read(10)
        stream.seek(0)
        copied = b"".join(iter(lambda: stream.read(2**20 + 1), b""))
    assert (start, middle) == (content[:10], content[5:15])
    assert copied == content


def test_a_writer_that_fails_leaves_the_old_object(bucket):
    storage.put(f"{bucket}/file", b"old")

    def fail():
        with storage.writer(f"{bucket}/file") as stream:
            stream.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert storage.read_bytes(f"{bucket}/file") == b"old"


def test_of_two_puts_where_none_is_one_wins(bucket):
    assert buckets.put_if_absent(f"{bucket}/lock", b"ours")
    assert not buckets.put_if_absent(f"{bucket}/lock", b"theirs")
    assert storage.read_bytes(f"{bucket}/lock") == b"ours"
    # A request whose answer was lost is sent again.
    assert buckets.put_if_absent(f"{bucket}/lock", b"ours")


def test_only_the_version_that_was_read_is_deleted(bucket):
    storage.put(f"{bucket}/lock", b"old")
    version = buckets.version(f"{bucket}/lock")
    storage.put(f"{bucket}/lock", b"new")
    assert not buckets.delete_version(f"{bucket}/lock", version)
    assert storage.read_bytes(f"{bucket}/lock") == b"new"
    assert buckets.delete_version(f"{bucket}/lock", buckets.version(f"{bucket}/lock"))
    assert not storage.exists(f"{bucket}/lock")


def test_what_is_not_there_is_told_with_its_path(bucket):
    with pytest.raises(FileNotFoundError, match=f"{bucket}/gone"):
        storage.open_input(f"{bucket}/gone")
    with pytest.raises(FileNotFoundError, match="gs://no-such-bucket-here/file"):
        storage.put("gs://no-such-bucket-here/file", b"")
    with pytest.raises(InputError, match="no file found at gs://no-such-bucket-here"):
        storage.list_files("gs://no-such-bucket-here/shards")
