"""The same command on real runners, Flink and Prism: the tables are those of a local run, to the byte."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import go_program
from helpers import REPOSITORY, command, environment, run_job, table_digests, write_tfrecord_shards

LOCAL_CLUSTER = REPOSITORY / "infra" / "flink" / "local_cluster.py"
PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0"
SHARDS = 12
JOB_SECONDS = 240


class LocalCluster:
    """A Flink cluster of one work folder, by the script that a user starts."""

    def __init__(self, work):
        self._work = work

    def call(self, *arguments):
        return subprocess.run(
            [sys.executable, LOCAL_CLUSTER, arguments[0], "--work", self._work, *arguments[1:]],
            capture_output=True,
            text=True,
            env=environment(),
        )

    def processes(self, name):
        state = json.loads((self._work / "cluster.json").read_bytes())
        return [process["pid"] for process in state["processes"] if process["name"].startswith(name)]


@pytest.fixture(scope="module")
def flink(tmp_path_factory):
    cluster = LocalCluster(tmp_path_factory.mktemp("flink"))
    started = cluster.call("start", "--task-managers", "2", "--slots", "1")
    if started.returncode == 2:
        pytest.skip(started.stderr.strip().splitlines()[-1])
    assert started.returncode == 0, started.stderr
    try:
        yield cluster
    finally:
        assert cluster.call("stop").returncode == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards, and a local run over them with the model that comes with the package."""
    place = tmp_path_factory.mktemp("cluster")
    write_tfrecord_shards(place / "shards", SHARDS, 12)
    run_job("infer", "--input", place / "shards", "--out", place / "local", "--engine", "litert", cwd=place)
    return place


def infer(place, out, options):
    return command(
        "infer", "--input", place / "shards", "--out", place / out, "--engine", "litert", "--threads", 1, *options
    )


def finish(process):
    """Wait for a job and give its exit code; it must not wait for ever."""
    try:
        return process.wait(JOB_SECONDS)
    finally:
        process.kill()
        process.wait()


def start(place, out, options):
    with open(place / f"{out}.log", "wb") as log:
        return subprocess.Popen(infer(place, out, options), cwd=place, env=environment(), stdout=log, stderr=log)


def log_of(place, out):
    return (place / f"{out}.log").read_text(errors="replace")[-3000:]


def cluster_options(flink, *more):
    options = flink.call("options").stdout.split()
    return [*options, *more]


def test_flink_gives_the_tables_of_a_local_run(flink, place):
    assert finish(start(place, "flink", cluster_options(flink))) == 0, log_of(place, "flink")
    assert table_digests(place / "flink") == table_digests(place / "local")
    assert (place / "flink" / "_SUCCESS").exists()


def test_a_killed_task_manager_costs_no_committed_unit(flink, place):
    process = start(place, "killed", cluster_options(flink))
    commits = place / "killed" / "_commits"
    end = time.monotonic() + JOB_SECONDS
    while not (commits.is_dir() and any(commits.glob("*.json"))):
        assert process.poll() is None, log_of(place, "killed")
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(flink.processes("taskmanager")[0], signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in commits.glob("*.json")}
    assert flink.call("add-task-manager").returncode == 0
    assert finish(process) == 0, log_of(place, "killed")
    after = {path.name: path.stat().st_mtime_ns for path in commits.glob("*.json")}
    assert len(after) == SHARDS
    assert {name: after[name] for name in before} == before
    assert table_digests(place / "killed") == table_digests(place / "local")


def test_prism_gives_the_tables_of_a_local_run(place):
    options = ["--runner", "PrismRunner", "--prism_location", go_program(PRISM), "--environment_type", "LOOPBACK"]
    assert finish(start(place, "prism", options)) == 0, log_of(place, "prism")
    assert table_digests(place / "prism") == table_digests(place / "local")
