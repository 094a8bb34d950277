"""Which devices a training runs on."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from model.errors import InputError
from model.spec import STRATEGIES


def make_strategy(name: str, virtual_devices: int = 0) -> Any:
    """A tf.distribute strategy.

    Args:
        name: ``default`` (one device) or ``mirrored`` (every GPU; without one, the CPU).
        virtual_devices: split the CPU into that many logical devices and train on them, to try a strategy out on a
            machine without GPUs; 0 for none.

    Raises:
        InputError: the name is unknown, virtual devices are asked for without a strategy over devices, or TensorFlow
            has started already and cannot split the CPU any more.
    """
    if name not in STRATEGIES:
        raise InputError(f"there is no strategy {name!r}; the strategies are {', '.join(STRATEGIES)}")
    if virtual_devices and name == "default":
        raise InputError("--virtual-devices only has a meaning with --strategy mirrored")
    if virtual_devices:
        _split_cpu(virtual_devices)
    if name == "default":
        return tf.distribute.get_strategy()
    if virtual_devices:
        return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(virtual_devices)])
    return tf.distribute.MirroredStrategy()


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        found = len(tf.config.list_logical_devices("CPU"))
    except RuntimeError:
        found = len(tf.config.list_logical_devices("CPU"))
    if found < count:
        raise InputError(f"--virtual-devices {count}: TensorFlow has already started with {found} CPU devices")


def start_devices() -> None:
    """Start TensorFlow's devices now rather than at the first operation, whose time and messages they would add to."""
    tf.config.list_logical_devices()


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))
