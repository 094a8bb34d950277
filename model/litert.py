"""A pool of LiteRT interpreters over one model, borrowed by threads for one small batch each."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import InputError
from model.native_log import quiet_native_log

BATCH_SIZE = 8
"""Images per invocation: 1 to 8 are equally fast, larger batches fall out of the cache."""


class InterpreterPool:
    """Interpreters of one thread each; an interpreter that two threads use at once raises, so each is lent to one.

    Args:
        model: path of a ``.tflite`` file, or its content.
        threads: number of interpreters.
        batch_size: fixed batch of every invocation; smaller batches are padded, so that the numbers of an image do not
            depend on how many others came with it.

    Raises:
        InputError: the LiteRT runtime is not installed, or the file is no model with one uint8 image input.
    """

    def __init__(self, model: str | bytes, threads: int, batch_size: int = BATCH_SIZE) -> None:
        self.batch_size = batch_size
        self._free: queue.SimpleQueue[_Interpreter] = queue.SimpleQueue()
        with quiet_native_log():
            for _ in range(threads):
                self._free.put(_Interpreter(model, batch_size))

    def run(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs by name, float32[images, ...], for pixels uint8[images, size, size, 3], images <= batch_size."""
        if len(pixels) > self.batch_size:
            raise ValueError(f"{len(pixels)} images are more than the batch of {self.batch_size}")
        with self._borrowed() as interpreter:
            return interpreter.run(pixels)

    @contextmanager
    def _borrowed(self) -> Iterator[_Interpreter]:
        interpreter = self._free.get()
        try:
            yield interpreter
        finally:
            self._free.put(interpreter)


class _Interpreter:
    def __init__(self, model: str | bytes, batch_size: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise InputError(f"the litert engine needs the package ai-edge-litert: {error}") from error
        source: dict[str, Any] = {"model_path": model} if isinstance(model, str) else {"model_content": model}
        try:
            self._interpreter = Interpreter(**source, num_threads=1)
            details = self._interpreter.get_input_details()[0]
            shape = details["shape_signature"]
            self._input = details["index"]
            self._interpreter.resize_tensor_input(self._input, (batch_size, *shape[1:]))
            self._interpreter.allocate_tensors()
            runner = self._interpreter.get_signature_runner()
            self._outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
        except (ValueError, RuntimeError) as error:
            raise InputError(f"not a LiteRT model that can be used here: {error}") from error
        self._batch = np.zeros((batch_size, *shape[1:]), np.uint8)

    def run(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        count = len(pixels)
        self._batch[:count] = pixels
        self._batch[count:] = 0
        self._interpreter.set_tensor(self._input, self._batch)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index)[:count] for name, index in self._outputs.items()}
