"""Markers and totals add up, and a run has one writer."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import environment

from model.errors import InputError, RunError
from model.metrics import MetricCounts, count
from pipelines import run, storage
from pipelines.run import Marker, Totals

CLASSES = ("sound", "crack")


def marker(number: int, failures: int = 0, error: str | None = None) -> Marker:
    generator = np.random.default_rng(number)
    probabilities = generator.random((5, 2), np.float32)
    counts = count(CLASSES, ["sound", "crack", None, "moss", "crack"], probabilities.argmax(axis=1), probabilities)
    codes = {"decode/empty": failures} if failures else {}
    errors = {f"s{number}": error} if error else {}
    return Marker(
        f"{number:06d}-aa", f"s{number}", 5 + failures, 5, failures, codes, errors, 100, 0.25 * number, counts, {}, "ab"
    )


def as_json(totals: Totals) -> dict:
    return {**dataclasses.asdict(dataclasses.replace(totals, counts=None)), "counts": totals.counts.to_json()}


def test_a_marker_is_read_as_it_was_written(tmp_path):
    written = marker(3, failures=2, error="cut")
    storage.put(run.marker_path(str(tmp_path), written.unit), written.to_bytes())
    (found,) = run.read_markers(str(tmp_path))
    assert found.to_bytes() == written.to_bytes()
    assert as_json(Totals.of(found)) == as_json(Totals.of(written))


def test_totals_are_the_same_in_any_order_and_grouping():
    parts = [
        Totals.of(marker(number, failures=number % 2, error="cut" if number == 2 else None)) for number in range(5)
    ]
    whole = as_json(sum(parts[1:], parts[0]))
    assert whole == as_json((parts[4] + parts[2]) + (parts[0] + (parts[3] + parts[1])) + Totals.zero(CLASSES))
    assert whole["images"] == 27
    assert whole["failure_codes"] == {"decode/empty": 2}
    assert whole["shard_errors"] == (("s2", "cut"),)
    assert MetricCounts.from_json(whole["counts"]).rows == 25


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"unit": 1', b"[1]"])
def test_a_damaged_marker_is_named(tmp_path, damage):
    storage.put(run.marker_path(str(tmp_path), "000000-aa"), damage)
    with pytest.raises(RunError, match=r"000000-aa\.json is damaged"):
        list(run.read_markers(str(tmp_path)))


def test_files_that_are_being_written_are_no_markers(tmp_path):
    storage.put(run.marker_path(str(tmp_path), "000000-aa"), b"{}")
    (tmp_path / "_commits" / ".123.tmp").write_bytes(b"{}")
    assert run.committed_units(str(tmp_path)) == ["000000-aa"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run python -m jobs.infer first"),
        (b"{", "damaged"),
        (b'"x"', "damaged"),
        (b'{"format_version": 1}', "damaged"),
        (b'{"format_version": 99}', "upgrade"),
    ],
)
def test_a_folder_without_a_whole_run_file_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=message):
        run.read_run(str(tmp_path))


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path):
    run.check_is_run_or_empty(str(tmp_path / "new"))
    run.check_is_run_or_empty(str(tmp_path))
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="holds other files"):
        run.check_is_run_or_empty(str(tmp_path))
    with pytest.raises(InputError, match="is a file"):
        run.check_is_run_or_empty(str(tmp_path / "holiday.jpg"))
    (tmp_path / "run.json").write_bytes(b"")
    run.check_is_run_or_empty(str(tmp_path))


def test_the_lock_tells_its_holder_and_goes_with_it(tmp_path):
    with run.locked(str(tmp_path)):
        holder = json.loads((tmp_path / "_lock.json").read_bytes())
        assert holder["pid"] == os.getpid()
        with pytest.raises(RunError, match=f"being written by process {os.getpid()} on {holder['host']}"):
            run.locked(str(tmp_path)).__enter__()
    assert not (tmp_path / "_lock.json").exists()
    with run.locked(str(tmp_path)):
        pass


def test_the_lock_of_a_killed_process_is_void(tmp_path):
    holding = (
        "import sys, time; from pipelines.run import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {process.pid}"), run.locked(str(tmp_path)):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "_lock.json").exists()
    with run.locked(str(tmp_path)):
        assert json.loads((tmp_path / "_lock.json").read_bytes())["pid"] == os.getpid()
