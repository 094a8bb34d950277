"""A supervised pool of Beam's Python workers, for pipelines with ``--environment_type EXTERNAL``.

A runner asks the pool for a worker process, and waits for ever where none comes. Beam's own pool
(``apache_beam.runners.worker.worker_pool_main``) is not enough for that:

- It is started again by nobody. Here a supervisor starts a pool that died within a second, at the same port.
- It starts ``python`` from its PATH. Here workers are of the Python that runs the pool.
- It knows workers by ids that each TaskManager counts from 1: of two that share a pool, one stops the other's worker.
  Here a worker is left to end by itself, which it does when its TaskManager closes the connection.

    python infra/flink/worker_pool.py --port 50000
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

RESTART_SECONDS = 1.0
WORKER = """\
import sys
from apache_beam.runners.worker.sdk_worker import SdkHarness
SdkHarness(sys.argv[1], worker_id=sys.argv[2], state_cache_size=0, data_buffer_time_limit_ms=-1).run()
"""


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """Starts a worker process per request."""

    def StartWorker(self, request: Any, _context: object) -> Any:  # noqa: N802
        command = [sys.executable, "-c", WORKER, request.control_endpoint.url, request.worker_id]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
        threading.Thread(target=_say_end, args=(process, request.worker_id), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, _request: object, _context: object) -> Any:  # noqa: N802
        return beam_fn_api_pb2.StopWorkerResponse()


def _say_end(process: subprocess.Popen[bytes], worker: str) -> None:
    print(f"worker {worker} (process {process.pid}) ended with {process.wait()}", file=sys.stderr, flush=True)


def serve(port: int) -> None:
    """Answer runners at a port; returns only by a signal."""
    pings = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)]
    server = grpc.server(shared_unbounded_instance(), options=pings)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(WorkerPool(), server)
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    server.wait_for_termination()


def supervise(port: int) -> None:
    """Keep a pool at a port, started again whenever it ends; returns only by a signal."""

    def stop(*_: object) -> None:
        # Pool and workers are of this process group: none stays behind.
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while True:
        code = subprocess.call([sys.executable, __file__, "--port", str(port), "--unsupervised"])
        print(f"the worker pool ended with {code}; starting it again", file=sys.stderr, flush=True)
        time.sleep(RESTART_SECONDS)


def main() -> None:
    """Run the command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--port", type=int, required=True, help="where runners reach the pool")
    options.add_argument("--unsupervised", action="store_true", help="end where the pool ends, as in a container")
    chosen = options.parse_args()
    if chosen.unsupervised:
        serve(chosen.port)
    if os.getpid() != os.getpgrp():
        os.setpgid(0, 0)
    supervise(chosen.port)


if __name__ == "__main__":
    main()
