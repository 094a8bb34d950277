"""Devices to train on. TensorFlow takes its devices once per process: what splits the CPU runs in one of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import environment

from model.errors import InputError
from model.strategy import has_gpu, make_strategy, start_devices

SPLIT = """
import tensorflow as tf
from model.strategy import make_strategy
strategy = make_strategy("mirrored", 2)
print(strategy.num_replicas_in_sync, strategy.extended.worker_devices)
print(type(strategy).__name__, len(tf.config.list_logical_devices("CPU")))
# Asked for again, what is there is enough; more is not.
print(make_strategy("mirrored", 2).num_replicas_in_sync, make_strategy("default").num_replicas_in_sync)
try:
    make_strategy("mirrored", 3)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_cpu_split_in_two_gives_two_replicas_and_cannot_be_split_again():
    result = subprocess.run(
        [sys.executable, "-c", SPLIT], capture_output=True, text=True, check=True, env=environment()
    )
    assert result.stdout.splitlines() == [
        "2 ('/job:localhost/replica:0/task:0/device:CPU:0', '/job:localhost/replica:0/task:0/device:CPU:1')",
        "MirroredStrategy 2",
        "2 1",
        "InputError --virtual-devices 3: TensorFlow has already started with 2 CPU devices",
    ]


def test_it_is_too_late_to_split_the_cpu_once_tensorflow_has_started():
    start_devices()
    with pytest.raises(InputError, match="--virtual-devices 2: TensorFlow has already started with 1 CPU devices"):
        make_strategy("mirrored", 2)


def test_virtual_devices_that_nothing_would_run_on_are_refused():
    with pytest.raises(InputError, match="--virtual-devices only has a meaning with --strategy mirrored"):
        make_strategy("default", 2)


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no strategy 'tpu'; the strategies are default, mirrored, multiworker"):
        make_strategy("tpu")


def test_default_is_one_replica():
    assert make_strategy("default").num_replicas_in_sync == 1


@pytest.mark.skipif(has_gpu(), reason="for machines without GPUs")
def test_mirrored_without_a_gpu_is_one_replica_on_the_cpu():
    assert make_strategy("mirrored").num_replicas_in_sync == 1


def test_several_workers_without_their_addresses_are_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InputError, match="--strategy multiworker needs TF_CONFIG on every worker"):
        make_strategy("multiworker")
