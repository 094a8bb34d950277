"""Engines: pixels in, scores out, whatever runs the network."""

from __future__ import annotations

import glob
import importlib.util
import os
import threading
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from model.bundle import LITERT_FILE, LITERT_INT8_FILE, Bundle
from model.errors import BundleError, InputError
from model.litert import InterpreterPool
from model.native_log import quiet_native_log
from model.spec import ModelSpec

ENGINES = ("auto", "litert", "litert-int8", "savedmodel")
LITERT_FILES = {"litert": LITERT_FILE, "litert-int8": LITERT_INT8_FILE}
NO_TENSORFLOW = "the savedmodel engine needs TensorFlow: pip install 'crackscan[train]'"
SAVED_MODEL_BATCH_CPU = 32
SAVED_MODEL_BATCH_GPU = 256


class Scores(NamedTuple):
    """What a network says: probabilities float32[batch, classes] in [0, 1] and embedding float32[batch, n]."""

    probabilities: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]


class Engine(Protocol):
    """Runs one network. ``predict`` may be called from several threads at once."""

    batch_size: int

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Scores:
        """Scores of pixels uint8[batch, size, size, 3] with at most ``batch_size`` images."""
        ...


class LiteRtEngine:
    """A network by LiteRT, faster on CPUs than TensorFlow; one interpreter per thread.

    Args:
        bundle: a model bundle; the hash of the LiteRT file is checked.
        threads: threads that may predict at the same time.
        file: the bundle's file to run: the float32 network, or the int8 one.

    Raises:
        InputError: the LiteRT runtime is not installed.
        BundleError: the file is missing or changed, or the bundle was written without it.
    """

    def __init__(self, bundle: Bundle, threads: int, file: str = LITERT_FILE) -> None:
        self._pool = InterpreterPool(_verified_litert(bundle, file), threads)
        self.batch_size = self._pool.batch_size

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Scores:
        return Scores(**self._pool.run(pixels))


class SavedModelEngine:
    """The SavedModel by TensorFlow: the reference, and the engine for GPUs.

    Args:
        bundle: a model bundle; the hashes of the SavedModel's files are checked.

    Raises:
        InputError: TensorFlow is not installed.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            with quiet_native_log():
                import tensorflow as tf

                gpus = tf.config.list_physical_devices("GPU")
        except ImportError as error:
            raise InputError(NO_TENSORFLOW) from error
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        # The contract is float32: TensorFloat-32 would cut the mantissa to 10 bits on NVIDIA GPUs.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self.batch_size = SAVED_MODEL_BATCH_GPU if gpus else SAVED_MODEL_BATCH_CPU
        with quiet_native_log():
            self._model = tf.saved_model.load(bundle.verified_saved_model())
        self._signature = self._model.signatures["serving_default"]
        self._size = bundle.spec.image_size
        self._constant = tf.constant
        self._lock = threading.Lock()

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Scores:
        count = len(pixels)
        batch = np.zeros((self.batch_size, self._size, self._size, 3), np.uint8)
        batch[:count] = pixels
        # TensorFlow uses all cores for one batch; two at once would only double the memory.
        with self._lock:
            outputs = self._signature(pixels=self._constant(batch))
        return Scores(outputs["probabilities"].numpy()[:count], outputs["embedding"].numpy()[:count])


def decide(probabilities: npt.NDArray[np.float32], spec: ModelSpec) -> npt.NDArray[np.int64]:
    """Predicted classes of probabilities float32[images, classes], as indices int64[images] into ``spec.classes``.

    With two classes the positive one is predicted where its probability reaches the spec's threshold; with more, the
    most probable class.
    """
    predicted: npt.NDArray[np.int64] = probabilities.argmax(axis=1)
    if len(spec.classes) == 2:
        positive = spec.classes.index(spec.positive_class)
        reached = probabilities[:, positive] >= np.float32(spec.threshold)
        predicted = np.where(reached, np.int64(positive), np.int64(1 - positive))
    return predicted


def choose_engine(name: str) -> str:
    """Resolve ``auto``: ``savedmodel`` where an NVIDIA device and TensorFlow are found, else ``litert``.

    Raises:
        InputError: the name is unknown.
    """
    if name not in ENGINES:
        raise InputError(f"there is no engine {name!r}; the engines are {', '.join(ENGINES)}")
    if name != "auto":
        return name
    # Looked for, not imported: importing TensorFlow to find that there is no GPU takes seconds and 600 MB.
    has_device = bool(glob.glob("/dev/nvidia[0-9]*"))
    return "savedmodel" if has_device and importlib.util.find_spec("tensorflow") else "litert"


def check_engine(name: str, bundle: Bundle) -> None:
    """Check that an engine can be opened on a bundle, without opening it.

    Raises:
        InputError: the name is unknown, or its runtime is not installed.
        BundleError: a file that it needs is missing or changed.
    """
    chosen = choose_engine(name)
    if chosen == "savedmodel":
        if importlib.util.find_spec("tensorflow") is None:
            raise InputError(NO_TENSORFLOW)
        bundle.verified_saved_model()
    else:
        _verified_litert(bundle, LITERT_FILES[chosen])


def _verified_litert(bundle: Bundle, file: str) -> str:
    if file == LITERT_INT8_FILE and file not in bundle.values["files"]:
        raise BundleError(
            f"the bundle {bundle.path} has no int8 network: train it again with this version, or give --engine litert"
        )
    return bundle.verified(file)


def open_engine(name: str, bundle: Bundle, threads: int | None = None) -> Engine:
    """Open an engine on a bundle.

    Args:
        name: one of :data:`ENGINES`.
        bundle: the model.
        threads: threads that may predict at the same time; all cores by default.

    Raises:
        InputError: the name is unknown or its runtime is not installed.
        BundleError: a file of the bundle is missing or changed.
    """
    chosen = choose_engine(name)
    if chosen == "savedmodel":
        return SavedModelEngine(bundle)
    return LiteRtEngine(bundle, threads or os.cpu_count() or 1, LITERT_FILES[chosen])
