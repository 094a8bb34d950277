"""Discrete-event simulation of work units on a cluster: slow workers, killed workers, retries, backup attempts."""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from typing import Literal

import numpy as np

Sharing = Literal["pull", "fixed"]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the units run on, and what goes wrong there.

    Attributes:
        slots: units that are worked on at the same time; each slot fails by itself.
        sharing: ``pull``: a free slot takes the next unit, as on Dataflow; ``fixed``: units are dealt out to the slots
            before the work begins, as behind a shuffle on Flink.
        backup: a slot with nothing to do begins, once, a unit that another one is still working on.
        bundle: units that the runner counts as done together; where a slot dies, all units of its bundle start again,
            those that were committed as well unless ``asks`` is set.
        asks: whether a unit that starts again is first looked up among the commit markers.
        slow_share, slow_factor: share of the slots that take so many times as long.
        spread: standard deviation of the logarithm of a unit's time.
        kills_per_hour: rate at which a slot dies (exponential).
        start_seconds: until a slot, or what replaces a dead one, is ready.
    """

    slots: int
    sharing: Sharing = "pull"
    backup: bool = False
    bundle: int = 1
    asks: bool = True
    slow_share: float = 0.0
    slow_factor: float = 1.0
    spread: float = 0.0
    kills_per_hour: float = 0.0
    start_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What came of it.

    Attributes:
        seconds: until the last unit was committed.
        busy_seconds: of all slots together, spent on attempts at units.
        useful_seconds: of the attempts that committed.
        attempts, kills: how many there were.
    """

    seconds: float
    busy_seconds: float
    useful_seconds: float
    attempts: int
    kills: int

    @property
    def waste(self) -> float:
        """Work done for nothing, as a share of the useful work."""
        return self.busy_seconds / self.useful_seconds - 1.0


def simulate(units: int, unit_seconds: float, cluster: Cluster, seed: int = 0) -> Simulated:
    """Run units of equal size to the end.

    Args:
        units: how many.
        unit_seconds: of one on a slot of usual speed, its fixed costs included.
        cluster: where.
        seed: of all that is random.
    """
    return _Simulation(units, unit_seconds, cluster, seed).run()


@dataclasses.dataclass(slots=True)
class _Slot:
    slow: float
    dies: float
    own: deque[int]
    bundle: list[int]
    unit: int = -1
    begun: float = 0.0


class _Simulation:
    def __init__(self, units: int, unit_seconds: float, cluster: Cluster, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._cluster = cluster
        self._units = units
        self._times = unit_seconds * np.exp(self._random.normal(0.0, cluster.spread, units))
        self._done = bytearray(units)
        self._left = units
        self._shared: deque[int] = deque(range(units) if cluster.sharing == "pull" else ())
        self._running: dict[int, int] = {}
        slow = self._random.random(cluster.slots) < cluster.slow_share
        fixed = cluster.sharing == "fixed"
        self._slots = [
            _Slot(
                cluster.slow_factor if slow[number] else 1.0,
                self._death(0.0),
                deque(range(number, units, cluster.slots) if fixed else ()),
                [],
            )
            for number in range(cluster.slots)
        ]
        self._events: list[tuple[float, int]] = []
        self._idle: list[int] = []
        self._busy = self._useful = self._end = 0.0
        self._attempts = self._kills = 0

    def run(self) -> Simulated:
        ready = self._random.uniform(0.5, 1.0, self._cluster.slots) * self._cluster.start_seconds
        for number, time in enumerate(ready):
            heapq.heappush(self._events, (float(time), number))
        while self._left:
            now, number = heapq.heappop(self._events)
            slot = self._slots[number]
            worked = slot.unit >= 0
            if worked:
                self._stop(slot, now)
            if worked and now >= slot.dies:
                self._die(slot, number, now)
                continue
            if now >= slot.dies:
                # It stood idle, so that nothing was lost and its replacement is ready.
                slot.dies = self._death(now)
            self._begin(slot, number, now)
        return Simulated(self._end, self._busy, self._useful, self._attempts, self._kills)

    def _death(self, now: float) -> float:
        rate = self._cluster.kills_per_hour / 3600.0
        return now + float(self._random.exponential(1.0 / rate)) if rate else float("inf")

    def _stop(self, slot: _Slot, now: float) -> None:
        unit, slot.unit = slot.unit, -1
        self._busy += now - slot.begun
        self._running[unit] -= 1
        if not self._running[unit]:
            del self._running[unit]
        if now >= slot.dies:
            return
        if not self._done[unit]:
            self._done[unit] = 1
            self._left -= 1
            self._useful += now - slot.begun
            self._end = now
        if len(slot.bundle) >= self._cluster.bundle:
            slot.bundle.clear()

    def _die(self, slot: _Slot, number: int, now: float) -> None:
        self._kills += 1
        again = [unit for unit in slot.bundle if not (self._cluster.asks and self._done[unit])]
        slot.bundle.clear()
        (self._shared if self._cluster.sharing == "pull" else slot.own).extendleft(reversed(again))
        back = now + self._cluster.start_seconds
        slot.dies = self._death(back)
        heapq.heappush(self._events, (back, number))
        for waiting in self._idle:
            heapq.heappush(self._events, (now, waiting))
        self._idle.clear()

    def _begin(self, slot: _Slot, number: int, now: float) -> None:
        waiting = self._shared if self._cluster.sharing == "pull" else slot.own
        unit = waiting.popleft() if waiting else self._unit_to_back_up()
        if unit is None:
            self._idle.append(number)
            return
        slot.unit, slot.begun = unit, now
        slot.bundle.append(unit)
        self._attempts += 1
        self._running[unit] = self._running.get(unit, 0) + 1
        end = now + float(self._times[unit]) * slot.slow
        heapq.heappush(self._events, (min(end, slot.dies), number))

    def _unit_to_back_up(self) -> int | None:
        if not self._cluster.backup:
            return None
        alone = (unit for unit, attempts in self._running.items() if attempts == 1 and not self._done[unit])
        return next(alone, None)
