"""What would fail on a cluster is found before a job is submitted; real worker pools: test_worker_probe.py."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from helpers import REPOSITORY, run_job, write_image_folder, write_tfrecord_shards

from model.bundle import PRETRAINED
from model.errors import InputError
from pipelines.preflight import (
    Findings,
    JobPaths,
    check_flink,
    check_job,
    check_job_endpoint,
    check_worker_pool,
    pool_address,
    worker_faults,
)
from pipelines.runner import pipeline_options
from pipelines.worker_probe import NoWorkerError, WorkerReport, is_this_machine

FLINK_OVERVIEW = {"taskmanagers": 2, "slots-total": 2, "slots-available": 2, "flink-version": "1.19.3"}
FIXED_DELAY = {"restart-strategy.type": "fixed-delay"}
BUCKETS = JobPaths("gs://images", "gs://models/bundle", "gs://runs/run")


def flink_options(address, *more):
    return pipeline_options(["--runner=FlinkRunner", f"--flink_master={address}", "--flink_version=1.19", *more])


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@pytest.fixture
def serve():
    """Serves answers by path over HTTP: the states of a Flink that a real one is hard to bring into."""
    servers = []

    def start(answers):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = answers.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode() if body is not None else b"<html>not found</html>")

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def flink(serve):
    def start(overview=(), config=FIXED_DELAY):
        entries = [{"key": key, "value": value} for key, value in dict(config).items()]
        return serve({"/overview": {**FLINK_OVERVIEW, **dict(overview)}, "/jobmanager/config": entries})

    return start


def flink_findings(address, *more) -> Findings:
    findings = Findings()
    check_flink(flink_options(address, *more), findings)
    return findings


def test_each_local_path_is_a_line_of_its_own_on_a_remote_runner(tmp_path):
    paths = JobPaths(str(tmp_path / "images"), "gs://models/bundle", str(tmp_path / "run"))
    with pytest.raises(InputError) as refused:
        check_job(pipeline_options(["--runner=PrismRunner"]), paths, "litert", shared_filesystem=False)
    assert [line.split(" is on")[0] for line in refused.value.args] == [
        f"--input {tmp_path}/images",
        f"--out {tmp_path}/run",
    ]
    assert all("--shared-filesystem" in line for line in refused.value.args)


def test_local_paths_pass_with_a_shared_filesystem_and_where_workers_are_of_this_process(tmp_path):
    paths = JobPaths(str(tmp_path), str(tmp_path), str(tmp_path / "run"))
    assert check_job(pipeline_options(["--runner=PrismRunner"]), paths, "litert", shared_filesystem=True) == Findings()
    loopback = pipeline_options(["--runner=PrismRunner", "--environment_type=LOOPBACK"])
    for options in (pipeline_options([]), loopback):
        assert check_job(options, paths, "litert", shared_filesystem=False) == Findings()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("below", ["", "deep/er/run"])
def test_a_folder_that_this_user_may_not_write_is_named(tmp_path, below):
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o555)
    # pytest's own folders are closed to others.
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    # Root may write anywhere, so that the check is made as another user, to whom our Python may be closed, once all is
    # imported.
    script = (
        "import os, pwd, sys; from pipelines.preflight import *\n"
        "if os.getuid() == 0: os.seteuid(pwd.getpwnam('nobody').pw_uid)\n"
        "findings = Findings(); check_writable(sys.argv[1], findings); print(*findings.problems)"
    )
    command = [sys.executable, "-c", script, str(folder / below)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert shown.stdout == f"--out {folder / below} cannot be written: Permission denied\n", shown.stderr


def test_a_run_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    paths = JobPaths(str(tmp_path), str(tmp_path), str(tmp_path / "file" / "run"))
    with pytest.raises(InputError, match=r"--out .*/file/run cannot be written: Not a directory"):
        check_job(pipeline_options([]), paths, "litert", shared_filesystem=False)


def test_a_bucket_that_nothing_serves_is_named():
    paths = JobPaths("gs://images", "gs://models/bundle", "nosuchscheme://runs/run")
    with pytest.raises(InputError, match="nosuchscheme://runs/run"):
        check_job(pipeline_options(["--runner=PrismRunner"]), paths, "litert", shared_filesystem=False)


def test_a_flink_that_can_do_the_job_is_told_of(flink):
    address = flink()
    expected = {"flink": f"1.19.3 at {address}, 2 TaskManagers, 2 of 2 slots free"}
    assert flink_findings(address) == Findings(facts=expected)


def test_a_flink_that_does_not_answer_is_one_line():
    address = f"127.0.0.1:{free_port()}"
    (problem,) = flink_findings(address).problems
    assert problem.startswith(f"no Flink answers at --flink_master {address}: ")
    assert "refused" in problem


def test_what_is_no_flink_is_told_from_one(serve):
    for answers in ({}, {"/overview": {"slots": 1}, "/jobmanager/config": []}, {"/overview": []}):
        (problem,) = flink_findings(serve(answers)).problems
        assert problem.endswith("is no Flink")


@pytest.mark.parametrize(
    ("overview", "reason"),
    [
        ({"slots-available": 0}, "has no free slot: all 2 are taken"),
        ({"slots-available": 0, "slots-total": 0, "taskmanagers": 0}, "has no free slot: no TaskManager is there"),
    ],
)
def test_a_flink_without_a_free_slot_is_refused(flink, overview, reason):
    (problem,) = flink_findings(flink(overview)).problems
    assert problem.endswith(reason)


def test_a_flink_that_starts_taskmanagers_on_demand_needs_no_free_slot(flink):
    address = flink(
        {"slots-available": 0, "slots-total": 0, "taskmanagers": 0}, {**FIXED_DELAY, "kubernetes.cluster-id": "scan"}
    )
    assert not flink_findings(address).problems


def test_more_parallelism_than_free_slots_is_a_warning(flink):
    findings = flink_findings(flink({"slots-available": 1}), "--parallelism=2")
    assert not findings.problems
    (warning,) = findings.warnings
    assert "--parallelism 2" in warning
    assert "1 free slot:" in warning


@pytest.mark.parametrize("config", [{}, {"restart-strategy.type": "none"}, {"restart-strategy": "off"}])
def test_restarts_that_are_switched_off_are_a_warning(flink, config):
    findings = flink_findings(flink(config=config))
    assert not findings.problems
    (warning,) = findings.warnings
    assert "restart-strategy.type: fixed-delay" in warning


@pytest.mark.parametrize("key", ["restart-strategy.type", "restart-strategy"])
def test_restarts_that_are_switched_on_need_no_word(flink, key):
    assert flink_findings(flink(config={key: "exponential-delay"})).warnings == []


def test_another_flink_than_the_job_server_is_made_for_is_refused(flink):
    address = flink({"flink-version": "1.20.1"})
    (problem,) = flink_findings(address).problems
    assert problem == f"the Flink at {address} is 1.20.1: give --flink_version 1.20 (it is 1.19)"
    assert not flink_findings(address, "--job_endpoint=localhost:8099").problems


@pytest.mark.parametrize(
    "arguments",
    [
        ["--runner=FlinkRunner", "--flink_master=[local]"],
        ["--runner=FlinkRunner"],
        ["--runner=PrismRunner", "--flink_master=127.0.0.1:1"],
    ],
)
def test_a_job_that_goes_to_no_running_flink_asks_none(arguments):
    findings = Findings()
    check_flink(pipeline_options(arguments), findings)
    assert findings == Findings()


def test_a_job_server_that_does_not_answer_is_one_line():
    findings = Findings()
    address = f"127.0.0.1:{free_port()}"
    check_job_endpoint(pipeline_options(["--runner=PortableRunner", f"--job_endpoint={address}"]), findings)
    (problem,) = findings.problems
    assert problem.startswith(f"no job server answers at --job_endpoint {address}: ")


def test_a_job_server_that_answers_is_told_of():
    findings = Findings()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_job_endpoint(pipeline_options(["--runner=PortableRunner", f"--job_endpoint={address}"]), findings)
    assert findings == Findings(facts={"job server": address})


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--environment_config=pool:50000"], "pool:50000"),
        (['--environment_config={"url": "pool:50000"}'], "pool:50000"),
        (["--environment_options=external_service_address=pool:50000"], "pool:50000"),
        ([], None),
    ],
)
def test_a_worker_pool_is_found_in_each_of_beams_options(arguments, address):
    from apache_beam.options.pipeline_options import PortableOptions

    assert pool_address(pipeline_options(arguments).view_as(PortableOptions)) == address


def pool_findings(address, flink="[auto]", probe=None) -> Findings:
    findings = Findings()
    options = flink_options(flink, "--environment_type=EXTERNAL", f"--environment_config={address}")
    check_worker_pool(options, BUCKETS, "litert", findings, probe or unexpected)
    return findings


def unexpected(*_, **__):
    raise AssertionError("the pool was asked")


def no_worker(*_, **__):
    raise NoWorkerError("answers, but no worker of it came within 1 s")


def test_an_external_environment_needs_an_address():
    (problem,) = pool_findings("").problems
    assert "--environment_config HOST:PORT" in problem


def test_a_pool_beside_each_taskmanager_of_another_machine_cannot_be_asked():
    findings = pool_findings("localhost:50000", flink="http://flink.example.org:8081")
    assert not findings.problems
    assert "each TaskManager's own" in findings.warnings[0]


def test_a_worker_that_does_not_come_is_a_fault_on_this_machine_only():
    """Elsewhere, workers may be unable to reach the submitter, which the job itself does not need."""
    assert pool_findings("localhost:50000", probe=no_worker).problems
    elsewhere = pool_findings("192.0.2.1:50000", flink="192.0.2.2:8081", probe=no_worker)
    assert not elsewhere.problems
    assert "no worker of it came" in elsewhere.warnings[0]


def test_a_worker_like_the_submitter_has_no_fault_and_each_difference_is_one():
    import platform

    from apache_beam.version import __version__ as beam_version

    good = {
        "python": platform.python_version(),
        "beam": beam_version,
        "crackscan": "0.1.0",
        "lacking": (),
        "unseen": (),
        "unwritable": False,
    }
    assert worker_faults(WorkerReport(**good), False, "/run") == []
    assert worker_faults(WorkerReport(**{**good, "crackscan": None}), True, "/run") == []
    for name, value, words in (
        ("python", "3.9.1", "runs Python 3.9.1"),
        ("beam", "2.1.0", "has Beam 2.1.0"),
        ("crackscan", None, "has no crackscan"),
        ("crackscan", "0.0.1", "has crackscan 0.0.1"),
        ("lacking", ("ai_edge_litert",), "has no ai_edge_litert"),
        ("unseen", ("/images",), "does not see /images"),
        ("unwritable", True, "cannot write to /run"),
    ):
        (fault,) = worker_faults(WorkerReport(**{**good, name: value}), False, "/run")
        assert fault.startswith(words)


def test_a_host_name_of_this_machine_is_told_from_others():
    assert is_this_machine("localhost")
    assert is_this_machine(socket.gethostname())
    assert not is_this_machine("192.0.2.1")
    assert not is_this_machine("no-such-host.invalid")


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path):
    write_image_folder(tmp_path / "images", 5)
    arguments = ("--input", "images", "--model", PRETRAINED, "--out", "run", "--images-per-unit", "2", "--dry-run")
    shown = run_job("infer", *arguments, cwd=tmp_path).stdout
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
    size = sum(path.stat().st_size for path in (tmp_path / "images").rglob("*.*"))
    assert {name: lines[name] for name in ("units", "images", "bytes", "committed")} == {
        "units": "3",
        "images": "5",
        "bytes": f"{size:,}",
        "committed": "0 units",
    }
    assert lines["run"] == str(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_dry_run_of_a_finished_run_says_that_nothing_is_left_and_refuses_another_input(tmp_path):
    write_tfrecord_shards(tmp_path / "shards", 2, 3)
    arguments = ("--input", "shards", "--model", PRETRAINED, "--out", "run")
    run_job("infer", *arguments, cwd=tmp_path)
    shown = run_job("infer", *arguments, "--dry-run", cwd=tmp_path).stdout
    assert "committed  2 units, nothing to do\n" in shown
    assert "images     known when they are read\n" in shown
    write_tfrecord_shards(tmp_path / "shards", 3, 3)
    assert "other settings" in run_job("infer", *arguments, "--dry-run", cwd=tmp_path, code=2).stderr


def test_a_job_for_a_flink_that_is_not_there_ends_at_once_with_a_line_for_each_reason(tmp_path):
    write_image_folder(tmp_path / "images", 2)
    flink = f"--flink_master=127.0.0.1:{free_port()}"
    arguments = ("--input", "images", "--model", PRETRAINED, "--out", "run", "--runner=FlinkRunner", flink)
    lines = run_job("infer", *arguments, cwd=tmp_path, code=2).stderr.splitlines()
    assert [line.split()[1] for line in lines] == ["--input", "--model", "--out", "no"]
    assert all(line.startswith("crackscan: ") for line in lines)
    assert not (tmp_path / "run").exists()
