"""The pool of interpreters: threads share it, and an image's numbers depend on nothing but the image."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model import litert
from model.errors import InputError
from model.litert import BATCH_SIZE, InterpreterPool


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return str(tiny_bundle / "model.tflite")


@pytest.fixture(scope="module")
def pool(model):
    return InterpreterPool(model, 2)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("count", range(1, BATCH_SIZE + 1))
def test_an_image_has_the_same_numbers_to_the_bit_in_every_batch(pool, count):
    alone = [pool.run(image[None]) for image in images(count)]
    together = pool.run(images(count))
    for name, values in together.items():
        assert values.shape[0] == count
        np.testing.assert_array_equal(values, np.concatenate([outputs[name] for outputs in alone]))


def test_what_came_before_leaves_nothing_behind(model):
    pool = InterpreterPool(model, 1)
    fresh = pool.run(images(1))
    kept = fresh["probabilities"].copy()
    pool.run(np.full((BATCH_SIZE, 32, 32, 3), 255, np.uint8))
    np.testing.assert_array_equal(pool.run(images(1))["probabilities"], kept)
    # The arrays given out belong to the caller: later batches don't write into them.
    np.testing.assert_array_equal(fresh["probabilities"], kept)


def test_four_threads_on_two_interpreters_say_what_one_says_alone(model):
    pool = InterpreterPool(model, 2)
    batches = [images(1 + seed % BATCH_SIZE, seed) for seed in range(60)]
    alone = InterpreterPool(model, 1)
    expected = [alone.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(pool.run, batches))
    for one, other in zip(found, expected, strict=True):
        for name, values in other.items():
            np.testing.assert_array_equal(one[name], values)


def test_an_interpreter_is_lent_to_one_thread_at_a_time(model, monkeypatch):
    pool = InterpreterPool(model, 2)
    lock = threading.Lock()
    busy, most = set(), 0
    run = litert._Interpreter.run

    def watched(self, pixels):
        nonlocal most
        with lock:
            assert id(self) not in busy
            busy.add(id(self))
            most = max(most, len(busy))
        result = run(self, pixels)
        with lock:
            busy.remove(id(self))
        return result

    monkeypatch.setattr(litert._Interpreter, "run", watched)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(pool.run, [images(BATCH_SIZE)] * 100))
    assert most == 2


def test_an_interpreter_comes_back_after_an_exception(model):
    pool = InterpreterPool(model, 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="broadcast"):
            pool.run(np.zeros((2, 16, 16, 3), np.uint8))
    assert pool.run(images(2))["probabilities"].shape == (2, 2)


def test_more_images_than_the_batch_are_refused(pool):
    with pytest.raises(ValueError, match="9 images are more than the batch of 8"):
        pool.run(images(9))


def test_a_model_may_come_as_bytes_and_with_another_batch_size(model, pool):
    with open(model, "rb") as stream:
        other = InterpreterPool(stream.read(), 1, batch_size=3)
    assert other.batch_size == 3
    np.testing.assert_allclose(other.run(images(3))["probabilities"], pool.run(images(3))["probabilities"], atol=1e-6)
    with pytest.raises(ValueError, match="4 images are more than the batch of 3"):
        other.run(images(4))


@pytest.mark.parametrize("model", [b"no flatbuffer", b"", "/no/such/file.tflite"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(InputError, match="not a LiteRT model that can be used here"):
        InterpreterPool(model, 1)


def test_without_the_runtime_the_message_names_the_package(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError, match="needs the package ai-edge-litert"):
        InterpreterPool(model, 1)
