"""Which devices a training runs on."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from model.cluster import read_task
from model.errors import InputError
from model.spec import STRATEGIES

SHARED_GPU_MEMORY = 12_000
"""MiB of a GPU that its virtual devices share: TensorFlow tells a device's memory only once it has started it."""


def make_strategy(name: str, virtual_devices: int = 0) -> Any:
    """A tf.distribute strategy.

    Args:
        name: ``default`` (one device), ``mirrored`` (every GPU of this machine; without one, the CPU), or
            ``multiworker`` (every GPU of the machines that the environment variable TF_CONFIG lists).
        virtual_devices: split the CPU, or the first GPU, into that many logical devices and train on them, to try
            ``mirrored`` out; 0 for none.

    Raises:
        InputError: the name is unknown, virtual devices are asked for without ``mirrored``, TF_CONFIG does not
            describe this worker, or TensorFlow has started already and cannot split a device any more.
    """
    if name not in STRATEGIES:
        raise InputError(f"there is no strategy {name!r}; the strategies are {', '.join(STRATEGIES)}")
    if virtual_devices and name != "mirrored":
        raise InputError("--virtual-devices only has a meaning with --strategy mirrored")
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "multiworker":
        read_task()
        return tf.distribute.MultiWorkerMirroredStrategy()
    if not virtual_devices:
        return tf.distribute.MirroredStrategy()
    kind = "GPU" if has_gpu() else "CPU"
    _split_device(kind, virtual_devices)
    # NCCL, the default between GPUs, refuses two logical devices on one of them.
    operations = tf.distribute.HierarchicalCopyAllReduce() if kind == "GPU" else None
    return tf.distribute.MirroredStrategy([f"{kind}:{index}" for index in range(virtual_devices)], operations)


def wait_for_all(strategy: Any) -> None:
    """Return when every worker has come here: one that ends early makes the others fail."""
    if strategy.num_replicas_in_sync > 1:
        strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.0)), axis=None)


def _split_device(kind: str, count: int) -> None:
    device = tf.config.list_physical_devices(kind)[0]
    # The logical devices of a GPU share its memory, and each must be told its part.
    limit = None if kind == "CPU" else SHARED_GPU_MEMORY // count
    try:
        tf.config.set_logical_device_configuration(
            device, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)] * count
        )
        found = len(tf.config.list_logical_devices(kind))
    except RuntimeError:
        found = len(tf.config.list_logical_devices(kind))
    if found < count:
        raise InputError(f"--virtual-devices {count}: TensorFlow has already started with {found} {kind} devices")


def start_devices() -> None:
    """Start TensorFlow's devices now rather than at the first operation, whose time and messages they would add to."""
    tf.config.list_logical_devices()


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))
