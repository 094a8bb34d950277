"""Mapping in threads: order, a bounded look-ahead, exceptions, and an early end."""

from __future__ import annotations

import threading
import time

import pytest

from model.lookahead import LOOKAHEAD, chunked, map_ahead


def test_chunks_are_consecutive_and_the_last_one_is_shorter():
    assert list(chunked(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunked(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(chunked([], 3)) == []


def test_chunks_are_given_out_as_soon_as_they_are_full():
    def items():
        yield from (1, 2)
        raise AssertionError("asked for a third item before the first chunk was given out")

    assert next(chunked(items(), 2)) == [1, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_keep_the_items_order_when_later_ones_are_ready_first(threads):
    def slow_at_first(item):
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(map_ahead(slow_at_first, range(12), threads)) == [item * item for item in range(12)]


def test_nothing_comes_of_nothing():
    assert list(map_ahead(str, [], 2)) == []


def test_the_threads_work_at_the_same_time():
    together = threading.Barrier(3, timeout=10)
    assert len(list(map_ahead(lambda _: together.wait(), range(3), 3))) == 3


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_items_are_pulled_only_so_far_ahead_of_a_slow_consumer(threads):
    pulled = 0

    def items():
        nonlocal pulled
        for item in range(50):
            pulled += 1
            yield item

    ahead = [pulled - taken for taken, _ in enumerate(map_ahead(str, items(), threads))]
    assert max(ahead) == LOOKAHEAD * threads
    assert ahead[:10] == [LOOKAHEAD * threads] * 10


def collect(results, function, items):
    for result in map_ahead(function, items, 2):
        results.append(result)


def test_an_exception_of_the_function_comes_after_all_earlier_results():
    def fail_at_seven(item):
        if item == 7:
            raise KeyError("seven")
        return item

    results = []
    with pytest.raises(KeyError, match="seven"):
        collect(results, fail_at_seven, range(50))
    assert results == list(range(7))


def test_an_exception_of_the_items_passes_behind_results_in_order():
    def items():
        yield from range(20)
        raise OSError("the disk is gone")

    results = []
    with pytest.raises(OSError, match="the disk is gone"):
        collect(results, lambda item: item, items())
    # What was under way when the items ended is given up.
    assert results == list(range(20 - LOOKAHEAD * 2 + 1))


def test_threads_end_and_waiting_items_are_given_up_when_the_consumer_stops_early():
    before = set(threading.enumerate())
    started = []

    def work(item):
        started.append(item)
        time.sleep(0.1 if item else 0)
        return item

    results = map_ahead(work, range(1000), 2)
    assert next(results) == 0
    during = set(threading.enumerate()) - before
    assert len(during) == 2
    results.close()
    assert not any(thread.is_alive() for thread in during)
    # Four were handed to the pool, and two threads can have begun two more at most.
    assert set(started) <= {0, 1, 2}
