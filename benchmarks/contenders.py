"""Who is measured, and how each is started: a process of its own, in its own environment."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.environments import peer_python
from benchmarks.images import REPOSITORY
from benchmarks.task import Task
from model.engine import ENGINES
from model.errors import InputError

OURS = "ours"
LIMIT = "limit"
PEER = "peer"
RUN = "run"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: short; of its files and on the command line.
        title: for the table.
        kind: :data:`OURS`, :data:`LIMIT` or :data:`PEER`.
        module: what is run with ``python -m``.
        engine: the engine's name, where it has a choice.
        arguments: more of them, behind the task.
        environment: name of its requirements in ``benchmarks/peers``; None for this very Python.
    """

    name: str
    title: str
    kind: str
    module: str
    engine: str = ""
    arguments: tuple[str, ...] = ()
    environment: str | None = None

    def command(self, task: Task) -> list[str]:
        """Its command line; makes its environment if that is not there yet.

        Raises:
            InstallError: the environment could not be made.
        """
        python = peer_python(self.environment) if self.environment else sys.executable
        if self.kind == OURS:
            paths = ["--input", task.shards, "--model", task.bundle, "--out", os.path.join(task.out, RUN)]
            return [python, "-m", self.module, *paths, "--engine", self.engine]
        return [python, "-m", self.module, task.to_argument(), *self.arguments]


PEERS = (
    Contender("keras", "Keras image_dataset_from_directory + predict", PEER, "benchmarks.peers.keras_predict"),
    Contender(
        "beam", "Beam RunInference + TFModelHandlerTensor", PEER, "benchmarks.peers.beam_tensor", environment="beam"
    ),
    Contender("ray", "Ray Data read_images + map_batches", PEER, "benchmarks.peers.ray_data", environment="ray"),
    Contender(
        "daft-savedmodel", "Daft, SavedModel", PEER, "benchmarks.peers.daft_udf", "savedmodel", environment="daft"
    ),
    Contender("daft-litert", "Daft, our LiteRT file", PEER, "benchmarks.peers.daft_udf", "litert", environment="daft"),
    Contender("spark", "Spark predict_batch_udf", PEER, "benchmarks.peers.spark_udf", environment="spark"),
)


def contenders(engines: Sequence[str], peers: str) -> list[Contender]:
    """The rows in the order in which they take turns; the first is what the others are compared with.

    Args:
        engines: names of engines.
        peers: ``none``, ``all``, or names of :data:`PEERS` with commas between.

    Raises:
        InputError: a name is unknown.
    """
    known = [engine for engine in ENGINES if engine != "auto"]
    for engine in engines:
        if engine not in known:
            raise InputError(f"there is no engine {engine!r}; the engines are {', '.join(known)}")
    names = [peer.name for peer in PEERS]
    chosen = {"none": [], "all": names}.get(peers, [name.strip() for name in peers.split(",")])
    for name in chosen:
        if name not in names:
            raise InputError(f"there is no peer {name!r}; the peers are none, all, {', '.join(names)}")
    rows = []
    for engine in engines:
        rows.append(Contender(f"ours-{engine}", f"crackscan, {engine}", OURS, "jobs.infer", engine))
        rows.append(Contender(f"bare-{engine}", f"bare loop, {engine}", LIMIT, "benchmarks.bare", engine))
        rows.append(
            Contender(
                f"engine-{engine}", f"{engine} alone, decoded images", LIMIT, "benchmarks.bare", engine, ("decoded",)
            )
        )
    return rows + [peer for peer in PEERS if peer.name in chosen]


def process_environment(python: str) -> Mapping[str, str]:
    """Environment variables of a contender's process: this checkout to import, its own Python first, no telemetry."""
    folder = str(Path(python).parent)
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONWARNINGS": "ignore",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYSPARK_PYTHON": python,
        "PYSPARK_DRIVER_PYTHON": python,
        "RAY_USAGE_STATS_ENABLED": "0",
        "DAFT_ANALYTICS_ENABLED": "0",
        "DO_NOT_TRACK": "true",
    }
