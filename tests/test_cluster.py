"""Which worker this process is."""

from __future__ import annotations

import json

import pytest

from model.cluster import read_task
from model.errors import InputError

WORKERS = {"worker": ["one:1", "two:1"]}
WITH_CHIEF = {"chief": ["zero:1"], **WORKERS}


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "is_chief"),
    [
        (WORKERS, "worker", 0, True),
        (WORKERS, "worker", 1, False),
        (WITH_CHIEF, "chief", 0, True),
        (WITH_CHIEF, "worker", 0, False),
    ],
)
def test_the_chief_or_else_the_first_worker_writes(monkeypatch, cluster, kind, index, is_chief):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
    assert read_task() == (kind, index, is_chief)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        json.dumps({"cluster": WORKERS}),
        json.dumps({"cluster": WORKERS, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": WORKERS, "task": {"type": "ps", "index": 0}}),
        json.dumps({"cluster": {"ps": ["one:1"]}, "task": {"type": "ps", "index": 0}}),
        json.dumps({"cluster": {"worker": [[]]}, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_a_task_without_an_address_is_refused_with_an_example(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=r"needs TF_CONFIG on every worker: \{\"cluster\""):
        read_task()
