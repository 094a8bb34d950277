"""Ask a Beam worker pool (environment type EXTERNAL) what its workers are, by a job of one element that runs on it.

A pool answers one question only, to start a worker, and an asking runner waits for that worker for ever. So the job
runs in a process of its own, which is ended when its time is up: ``python -m pipelines.worker_probe HOST:PORT``.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

NAMESPACE = "crackscan"
ANSWER_SECONDS = 5
WORKER_SECONDS = 45
"""A worker has to start Python and import Beam: a second on an idle machine, twenty on a busy one."""


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """What a worker of a pool says of itself.

    Attributes:
        python, beam: versions.
        crackscan: version; None where the package is not there.
        lacking: those of the modules asked for that its Python does not have.
        unseen: those of the paths asked for that are not there on its machine.
        unwritable: the folder asked for cannot be written by it.
    """

    python: str
    beam: str
    crackscan: str | None
    lacking: tuple[str, ...]
    unseen: tuple[str, ...]
    unwritable: bool


class PoolError(Exception):
    """A pool cannot be used; the message says why, as the end of a sentence that begins with its address."""


class NoWorkerError(PoolError):
    """A pool answers, and no worker of it came to us."""


def describe_worker(modules: Sequence[str], paths: Sequence[str], folder: str | None) -> dict[str, Any]:
    """Runs on the worker, as source text: bytecode is of one Python version only, and ours may not be there."""
    import importlib.metadata
    import importlib.util
    import os
    import platform

    import apache_beam

    crackscan = None
    if importlib.util.find_spec("pipelines"):
        try:
            crackscan = importlib.metadata.version("crackscan")
        except importlib.metadata.PackageNotFoundError:
            crackscan = "unknown"
    return {
        "python": platform.python_version(),
        "beam": apache_beam.__version__,
        "crackscan": crackscan,
        "lacking": [name for name in modules if not importlib.util.find_spec(name)],
        "unseen": [path for path in paths if not os.path.exists(path)],
        "unwritable": bool(folder) and not os.access(str(folder), os.W_OK | os.X_OK),
    }


def probe_pool(
    address: str,
    modules: Sequence[str] = (),
    paths: Sequence[str] = (),
    folder: str | None = None,
    worker_seconds: float = WORKER_SECONDS,
) -> WorkerReport:
    """Start a worker of a pool and let it report.

    Args:
        address: HOST:PORT of the pool.
        modules: Python modules that a worker needs.
        paths: local paths that a worker must see.
        folder: local folder that a worker must be able to write to.
        worker_seconds: how long to wait for the worker.

    Raises:
        NoWorkerError: the pool answers, and its worker did not come in that time.
        PoolError: the pool does not answer, or its worker fails.
    """
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise PoolError("does not answer") from None
    question = json.dumps({"modules": list(modules), "paths": list(paths), "folder": folder})
    command = [sys.executable, "-m", "pipelines.worker_probe", address]
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))}
    try:
        done = subprocess.run(
            command, input=question, capture_output=True, text=True, timeout=worker_seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        raise NoWorkerError(f"answers, but no worker of it came within {worker_seconds:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise PoolError(f"cannot run a job: {lines[-1] if lines else f'exit code {done.returncode}'}")
    values = json.loads(done.stdout.splitlines()[-1])
    return WorkerReport(**{**values, "lacking": tuple(values["lacking"]), "unseen": tuple(values["unseen"])})


def is_this_machine(host: str) -> bool:
    """Whether a host name is one of this machine's own."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, place in found:
        try:
            # Only an address of this machine can be bound.
            with socket.socket(family, kind, protocol) as trial:
                trial.bind((place[0], 0))
                return True
        except OSError:
            continue
    return False


def ask_worker(address: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """Run :func:`describe_worker` on a pool by Beam's in-process runner; waits for ever where no worker comes.

    Everything sent is text or is named, never bytecode, so that a worker with another Python can answer.
    """
    import apache_beam as beam
    from apache_beam.metrics.metric import MetricsFilter
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import ExternalEnvironment

    program = "\n".join(
        (
            "from __future__ import annotations",
            "import json",
            "from apache_beam.metrics import Metrics",
            inspect.getsource(describe_worker),
            f"Metrics.counter({NAMESPACE!r}, json.dumps(describe_worker(**{dict(question)!r}))).inc()",
        )
    )
    pipeline = beam.Pipeline(FnApiRunner(default_environment=ExternalEnvironment(address)), PipelineOptions([]))
    impulse = b""
    (
        pipeline
        | beam.Impulse()
        | "Program" >> beam.FlatMap({impulse: [program]}.__getitem__)
        | "Run" >> beam.FlatMap(exec, {})
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    answer: dict[str, Any] = json.loads(counters[0].key.metric.name)
    return answer


if __name__ == "__main__":
    print(json.dumps(ask_worker(sys.argv[1], json.load(sys.stdin))))
