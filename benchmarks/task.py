"""What a contender's process is told and what it reports; imported in every environment, so by nothing but Python."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

LOADED = "loaded"
ANSWERS = "answers"


@dataclasses.dataclass(frozen=True)
class Task:
    """What to classify, with what, and where the answers go.

    Attributes:
        images: folder with a subfolder of image files per class.
        shards: folder of TFRecord files with the same images.
        bundle: the model bundle.
        out: an empty folder of this process' own.
        image_size: side of the network's square input in pixels.
        count: number of images.
        engine: the engine's name, for contenders that have a choice.
    """

    images: str
    shards: str
    bundle: str
    out: str
    image_size: int
    count: int
    engine: str = ""

    def to_argument(self) -> str:
        """The task as one argument of a command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_arguments(cls) -> Task:
        """The task that this process was started with."""
        return cls(**json.loads(sys.argv[1]))

    @property
    def answers(self) -> str:
        """Folder of Parquet or JSON lines files with columns ``path`` and ``probabilities``."""
        return os.path.join(self.out, ANSWERS)


@contextlib.contextmanager
def loading(out: str) -> Iterator[None]:
    """Note how long a worker process takes to load the network while the job is running already."""
    started = time.perf_counter()
    yield
    folder = Path(out, LOADED)
    folder.mkdir(exist_ok=True)
    (folder / f"{os.getpid()}-{time.monotonic_ns()}").write_text(repr(time.perf_counter() - started))


def slowest_load(out: str) -> float:
    """Seconds that the slowest worker took to load the network; they load at the same time."""
    return max(float(path.read_text()) for path in Path(out, LOADED).iterdir())


def report(images: int, seconds: float) -> None:
    """Print the one line that the benchmark reads; the last of the output."""
    print(json.dumps({"images": images, "seconds": seconds}), flush=True)


def write_answers(task: Task, paths: Iterable[str], probabilities: Iterable[Sequence[float]]) -> None:
    """Write one JSON line per image."""
    os.makedirs(task.answers, exist_ok=True)
    with open(os.path.join(task.answers, "answers.jsonl"), "w") as stream:
        for path, values in zip(paths, probabilities, strict=True):
            stream.write(json.dumps({"path": path, "probabilities": [float(value) for value in values]}) + "\n")
