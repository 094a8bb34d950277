"""A run in a bucket has one writer, against a real Cloud Storage server."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import environment

from model.errors import RunError
from pipelines import lock, run, storage

HOLDING = (
    "import sys, time; from pipelines.run import locked\n"
    "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(bucket):
    """A process that holds ``bucket/run``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, f"{bucket}/run"], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_lock_tells_its_holder_and_goes_with_it(bucket):
    place = f"{bucket}/run"
    with run.locked(place):
        assert json.loads(storage.read_bytes(f"{place}/_lock.json"))["pid"] == os.getpid()
        with pytest.raises(RunError, match=f"being written by process {os.getpid()} on"), run.locked(place):
            pass
        assert storage.exists(f"{place}/_lock.json")
    assert not storage.exists(f"{place}/_lock.json")


def test_a_live_process_is_waited_for_and_a_killed_one_is_taken_over(bucket, holder):
    place = f"{bucket}/run"
    with pytest.raises(RunError, match=rf"being written by process {holder.pid} on \S+: wait for it") as caught:
        run.locked(place).__enter__()
    assert "remove" not in str(caught.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert storage.exists(f"{place}/_lock.json")
    with run.locked(place):
        assert json.loads(storage.read_bytes(f"{place}/_lock.json"))["pid"] == os.getpid()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"processes": "pid:[1]"}])
def test_the_lock_of_another_host_or_container_stays_and_the_line_tells_how_to_remove_it(bucket, change):
    place = f"{bucket}/run"
    storage.put(f"{place}/_lock.json", json.dumps({**lock.identity(), "pid": 2**22 + 1, **change}).encode())
    with pytest.raises(RunError, match=f"if that has ended, remove {place}/_lock.json"), run.locked(place):
        pass
    storage.delete(f"{place}/_lock.json")
    with run.locked(place):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"host": "x"}'])
def test_a_lock_that_says_nothing_is_not_taken_over(bucket, content):
    storage.put(f"{bucket}/run/_lock.json", content)
    with pytest.raises(RunError, match=r"another process.*remove"), run.locked(f"{bucket}/run"):
        pass


def test_of_many_who_find_a_dead_lock_one_takes_it(bucket):
    place = f"{bucket}/run"
    storage.put(f"{place}/_lock.json", json.dumps({**lock.identity(), "boot_id": "an earlier one"}).encode())
    held = []

    def attempt(_):
        stack = run.locked(place)
        try:
            stack.__enter__()
        except RunError:
            return
        held.append(stack)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert len(held) == 1
    held[0].__exit__(None, None, None)
    assert not storage.exists(f"{place}/_lock.json")


def test_what_was_removed_by_hand_and_taken_by_another_is_left_alone(bucket):
    place = f"{bucket}/run"
    with run.locked(place):
        storage.put(f"{place}/_lock.json", b'{"host": "another"}')
    assert storage.read_bytes(f"{place}/_lock.json") == b'{"host": "another"}'


def test_a_bucket_that_is_not_there_is_told_in_a_line(bucket):
    with pytest.raises(RunError, match="gs://no-such-bucket/run cannot be written: no such object or bucket"):
        run.locked("gs://no-such-bucket/run").__enter__()
