"""This process' place among the workers of a training, from the environment variable TF_CONFIG; without TensorFlow."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from model.errors import InputError

EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}, index 1 on host2'
)


class Task(NamedTuple):
    """One worker: its kind (``chief`` or ``worker``), its number among those, and whether it writes the results."""

    kind: str
    number: int
    is_chief: bool


def read_task() -> Task:
    """The task that TF_CONFIG gives to this process.

    Raises:
        InputError: TF_CONFIG is missing or lists no address for this task.
    """
    try:
        values = json.loads(os.environ.get("TF_CONFIG") or "{}")
        cluster, kind, index = values["cluster"], values["task"]["type"], int(values["task"]["index"])
        if not isinstance(cluster[kind][index], str) or kind not in ("chief", "worker"):
            raise ValueError(kind)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"--strategy multiworker needs TF_CONFIG on every worker: {EXAMPLE}") from error
    # The rule of tf.distribute: the chief where there is one, else the first worker.
    return Task(kind, index, kind == "chief" or (index == 0 and not cluster.get("chief")))
