"""Real worker pools are asked what their workers are, and one that cannot work is told from one that can."""

import os
import platform
import socket
import subprocess
import sys
import time

import pytest
from apache_beam.version import __version__ as beam_version

from pipelines.worker_probe import NoWorkerError, PoolError, probe_pool


@pytest.fixture
def start_pool(tmp_path):
    """Starts a worker pool of this Python, whose workers are the ``python`` of a PATH; gives its address."""
    processes = []

    def start(path: str) -> str:
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            port = trial.getsockname()[1]
        command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", str(port)]
        with open(tmp_path / "pool.log", "wb") as log:
            processes.append(subprocess.Popen(command, env={**os.environ, "PATH": path}, stdout=log, stderr=log))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                socket.create_connection(("localhost", port), 1).close()
                return f"localhost:{port}"
            except OSError:
                time.sleep(0.2)
        raise AssertionError((tmp_path / "pool.log").read_text())

    yield start
    for process in processes:
        process.terminate()
        process.wait()


def test_a_worker_reports_its_versions_and_what_it_lacks(start_pool, tmp_path):
    address = start_pool(os.path.dirname(sys.executable))
    report = probe_pool(
        address, ["json", "no_such_module"], [str(tmp_path), "/no/such/path"], str(tmp_path), worker_seconds=120
    )
    assert (report.python, report.beam) == (platform.python_version(), beam_version)
    assert report.crackscan
    assert (report.lacking, report.unseen, report.unwritable) == (("no_such_module",), ("/no/such/path",), False)


def test_a_pool_without_python_on_its_path_is_told(start_pool, tmp_path):
    with pytest.raises(PoolError, match="No such file or directory: 'python'"):
        probe_pool(start_pool(str(tmp_path)), worker_seconds=120)


def test_a_pool_whose_python_cannot_start_a_worker_does_not_hang(start_pool, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(NoWorkerError, match="no worker of it came within 15 s"):
        probe_pool(start_pool(f"{tmp_path}:/usr/bin:/bin"), worker_seconds=15)


def test_a_pool_that_is_not_there_is_told_in_seconds():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(PoolError, match="does not answer"):
        probe_pool(f"localhost:{port}")
    assert time.monotonic() - started < 15
