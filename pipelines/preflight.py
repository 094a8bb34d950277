"""What would fail an hour later on a cluster, checked in seconds before a job is submitted."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import socket
import tempfile
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions, SetupOptions
from apache_beam.version import __version__ as beam_version

from model.errors import InputError
from model.provenance import package_versions
from pipelines import storage
from pipelines.runner import is_in_process
from pipelines.worker_probe import NoWorkerError, PoolError, WorkerReport, is_this_machine, probe_pool

ANSWER_SECONDS = 5
ENGINE_MODULES = {"savedmodel": "tensorflow"}
"""The module that an engine needs on a worker, where it is not LiteRT's."""

_NO_RESTART = frozenset({"", "none", "off", "disable"})
_SLOTS_ON_DEMAND = ("kubernetes.cluster-id", "yarn.application.id")


@dataclasses.dataclass(frozen=True)
class JobPaths:
    """The places that a job reads and writes, local or in buckets, absolute.

    Attributes:
        input: root folder of the images.
        model: the bundle.
        run: the run directory, which need not be there yet.
    """

    input: str
    model: str
    run: str

    def local(self) -> dict[str, str]:
        """Those that are local, by the option that gives them."""
        places = {"--input": self.input, "--model": self.model, "--out": self.run}
        return {option: path for option, path in places.items() if not storage.is_remote(path)}


@dataclasses.dataclass
class Findings:
    """What the checks of a job found.

    Attributes:
        problems: what keeps the job from being submitted; each one line.
        warnings: what a person should know before; each one line.
        facts: what answered, by what it is (``flink``, ``workers``).
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    facts: dict[str, str] = dataclasses.field(default_factory=dict)


def check_job(options: PipelineOptions, paths: JobPaths, engine: str, shared_filesystem: bool) -> Findings:
    """Check a job: the place of its run, and on a remote runner all that it needs there.

    Args:
        options: Beam's options, as they will be sent.
        paths: what the job reads and writes.
        engine: name of the engine, resolved.
        shared_filesystem: local paths name the same files on this machine and on the workers.

    Returns:
        Warnings and facts; no problems.

    Raises:
        InputError: the job would fail; one line for each reason.
    """
    findings = Findings()
    check_writable(paths.run, findings)
    if not is_in_process(options):
        # LOOPBACK workers are this process.
        if not shared_filesystem and environment_type(options) != "LOOPBACK":
            findings.problems += [
                f"{option} {path} is on this machine only: give a path in a bucket, or --shared-filesystem if every "
                "worker sees the same files there"
                for option, path in paths.local().items()
            ]
        check_job_endpoint(options, findings)
        check_flink(options, findings)
        check_worker_pool(options, paths, engine, findings)
    if findings.problems:
        raise InputError(*findings.problems)
    return findings


def check_writable(run: str, findings: Findings) -> None:
    """Write a file of a few bytes where the run will be, and remove it."""
    try:
        if storage.is_remote(run):
            trial = storage.join(run, f"_tmp/preflight-{uuid.uuid4().hex}")
            storage.put(trial, b"crackscan")
            storage.delete(trial)
        else:
            with tempfile.TemporaryFile(dir=nearest_folder(run)) as stream:
                stream.write(b"crackscan")
    except InputError as error:
        findings.problems.append(str(error))
    except Exception as error:
        # Each cloud's library has errors of its own.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _one_line(error)
        findings.problems.append(f"--out {run} cannot be written: {reason}")


def nearest_folder(path: str) -> str:
    """A local path, or the nearest one above it that is there.

    Raises:
        OSError: what is there cannot be looked at.
    """
    while True:
        try:
            os.stat(path)
            return path
        except FileNotFoundError:
            path = os.path.dirname(path)


def check_job_endpoint(options: PipelineOptions, findings: Findings) -> None:
    """Whether a job server answers where ``--job_endpoint`` says."""
    address = options.view_as(PortableOptions).job_endpoint
    # Beam understands a word such as "embed" too.
    if not address or ":" not in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        findings.problems.append(f"no job server answers at --job_endpoint {address}: {_one_line(error)}")
    else:
        findings.facts["job server"] = address


def check_flink(options: PipelineOptions, findings: Findings) -> None:
    """What a Flink's REST interface says: whether it answers, its version, slots and restarts."""
    master = flink_address(options)
    if master is None:
        return
    try:
        overview = _ask_flink(master, "overview")
        config = {entry["key"]: entry["value"] for entry in _ask_flink(master, "jobmanager/config")}
        total, free = int(overview["slots-total"]), int(overview["slots-available"])
        managers, version = int(overview["taskmanagers"]), str(overview["flink-version"])
    except OSError as error:
        findings.problems.append(
            f"no Flink answers at --flink_master {master}: {_reason(error)}; start it, or give the address of its REST "
            "interface"
        )
        return
    except (ValueError, KeyError, TypeError):
        findings.problems.append(f"what answers at --flink_master {master} is no Flink")
        return
    findings.facts["flink"] = (
        f"{version} at {master}, {_count(managers, 'TaskManager')}, {free:,} of {total:,} slots free"
    )
    wanted = _flink_version(options)
    if wanted and not f"{version}.".startswith(f"{wanted}."):
        findings.problems.append(
            f"the Flink at {master} is {version}: give --flink_version {'.'.join(_minor(version))} (it is {wanted})"
        )
    if not any(config.get(key) for key in _SLOTS_ON_DEMAND):
        parallelism = options.view_as(FlinkRunnerOptions).parallelism
        if not free:
            reason = f"all {total:,} are taken" if total else "no TaskManager is there"
            findings.problems.append(f"the Flink at {master} has no free slot: {reason}")
        elif parallelism > free:
            findings.warnings.append(
                f"--parallelism {parallelism}, and the Flink at {master} has {_count(free, 'free slot')}: the job may "
                "wait for more"
            )
    strategy = str(config.get("restart-strategy.type", config.get("restart-strategy", ""))).lower()
    if strategy in _NO_RESTART:
        findings.warnings.append(
            f"the Flink at {master} does not restart a job that lost a TaskManager: set restart-strategy.type: "
            "fixed-delay in its configuration"
        )


def flink_address(options: PipelineOptions) -> str | None:
    """HOST:PORT, or the URL, of the Flink that a job goes to; None where it goes to none that is running by itself."""
    if not runner_name(options).startswith("flink"):
        return None
    master = str(options.view_as(FlinkRunnerOptions).flink_master or "")
    return None if not master or master.startswith("[") else master.rstrip("/")


def runner_name(options: PipelineOptions) -> str:
    """The runner's name in lower case, without its module."""
    return str(options.get_all_options().get("runner") or "").rpartition(".")[2].lower()


def _ask_flink(master: str, what: str) -> Any:
    import requests

    address = master if "://" in master else f"http://{master}"
    # requests' errors are of OSError, but those of its decoding of JSON are ValueErrors too.
    response = requests.get(f"{address}/{what}", timeout=ANSWER_SECONDS, headers={"Accept": "application/json"})
    return json.loads(response.content)


def _flink_version(options: PipelineOptions) -> str | None:
    """The version of Flink that the job server is made for; None where the person chose the job server itself."""
    flink = options.view_as(FlinkRunnerOptions)
    if options.view_as(PortableOptions).job_endpoint or flink.flink_job_server_jar:
        return None
    return str(flink.flink_version)


def check_worker_pool(
    options: PipelineOptions,
    paths: JobPaths,
    engine: str,
    findings: Findings,
    probe: Callable[..., WorkerReport] = probe_pool,
) -> None:
    """Whether the worker pool of ``--environment_type EXTERNAL`` answers, and its workers are what the job needs."""
    portable = options.view_as(PortableOptions)
    if environment_type(options) != "EXTERNAL":
        return
    address = pool_address(portable)
    if not address:
        findings.problems.append("--environment_type EXTERNAL needs the worker pool: --environment_config HOST:PORT")
        return
    host = address.rpartition(":")[0].strip("[]")
    flink = flink_address(options)
    if _is_loopback(host) and flink and not _is_loopback(urlsplit(f"//{flink.rpartition('//')[2]}").hostname or ""):
        findings.warnings.append(
            f"the worker pools at {address} are each TaskManager's own: this machine cannot ask them for their versions"
        )
        return
    local = paths.local()
    try:
        folder = nearest_folder(local["--out"]) if "--out" in local else None
    except OSError:
        folder = None
    try:
        report = probe(
            address,
            modules=[ENGINE_MODULES.get(engine, "ai_edge_litert")],
            paths=[path for option, path in local.items() if option != "--out"],
            folder=folder,
        )
    except NoWorkerError as error:
        if is_this_machine(host):
            findings.problems.append(f"the worker pool at {address} {error}: its python must have Beam; see its output")
        else:
            findings.warnings.append(
                f"the worker pool at {address} {error}: either its python has no Beam, or its machine cannot reach "
                f"{socket.getfqdn()}, which does no harm"
            )
        return
    except PoolError as error:
        hint = "start one with python infra/flink/worker_pool.py --port PORT"
        findings.problems.append(f"the worker pool at --environment_config {address} {error}; {hint}")
        return
    crackscan = f"crackscan {report.crackscan}" if report.crackscan else "no crackscan"
    findings.facts["workers"] = f"pool at {address}, Python {report.python}, Beam {report.beam}, {crackscan}"
    findings.problems += [
        f"the worker pool at {address} {fault}" for fault in worker_faults(report, _staged(options), paths.run)
    ]


def worker_faults(report: WorkerReport, package_is_staged: bool, run: str) -> list[str]:
    """Why a worker cannot do the job, each as the end of a sentence that begins with its pool."""
    faults = []
    python = platform.python_version()
    if _minor(report.python) != _minor(python):
        faults.append(f"runs Python {report.python}, and this job {python}: give both the same minor version")
    if report.beam != beam_version:
        faults.append(f"has Beam {report.beam}, and this job {beam_version}: give both the same version")
    ours = package_versions(("crackscan",)).get("crackscan")
    if not package_is_staged:
        if report.crackscan is None:
            faults.append("has no crackscan: install this project in its python")
        elif ours and report.crackscan not in ("unknown", ours):
            faults.append(f"has crackscan {report.crackscan}, and this job {ours}: install the same version there")
    faults += [f"has no {name}, which the engine needs: install it in its python" for name in report.lacking]
    faults += [f"does not see {path}: it is no file system that the workers share" for path in report.unseen]
    if report.unwritable:
        faults.append(f"cannot write to {run}: its user needs the right to")
    return faults


def environment_type(options: PipelineOptions) -> str:
    """Beam's kind of worker environment in upper case; empty where the runner chooses."""
    return str(options.view_as(PortableOptions).environment_type or "").upper()


def pool_address(portable: PortableOptions) -> str | None:
    """HOST:PORT of the worker pool, by any of Beam's ways to give it; None where it is not given."""
    config = portable.environment_config
    if not config:
        found = portable.lookup_environment_option("external_service_address")
        return str(found) if found else None
    if not config.lstrip().startswith("{"):
        return str(config)
    try:
        values: Mapping[str, Any] = json.loads(config)
    except ValueError as error:
        raise InputError(f"--environment_config {config} is no JSON: {error}") from error
    return values.get("url")


def _staged(options: PipelineOptions) -> bool:
    setup = options.view_as(SetupOptions)
    return bool(setup.setup_file or setup.extra_packages)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _reason(error: OSError) -> str:
    """The innermost reason of a failed request: requests wraps it in the names of its own layers."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
