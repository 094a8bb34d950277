"""How far a run is: images counted in this process, units counted by their markers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LOOK_SECONDS = 0.5
LOG_SECONDS = 30.0


class ImageCount:
    """Images done by this process; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, images: int) -> None:
        """Count some more."""
        with self._lock:
            self.value += images


images_done = ImageCount()
"""The handlers of the in-process runner count here."""


@contextmanager
def run_progress(sizes: Mapping[str, int], committed: Callable[[], list[str]]) -> Iterator[None]:
    """Show on stderr how far a run is while the body runs: a bar on a terminal, elsewhere a line every 30 seconds.

    Args:
        sizes: bytes of input of each unit, by name.
        committed: gives the names of the units that are committed by now.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    state = _State(sizes, committed)
    stop = threading.Event()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(state.line(), total=1.0)

        def follow() -> None:
            logged = time.monotonic()
            while not stop.wait(LOOK_SECONDS):
                state.look()
                progress.update(task, completed=state.share, description=state.line())
                if not console.is_terminal and time.monotonic() - logged >= LOG_SECONDS:
                    logged = time.monotonic()
                    console.print(state.line(), markup=False)

        thread = threading.Thread(target=follow, name="run-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            state.look()
            progress.update(task, completed=state.share, description=state.line())
    if not console.is_terminal:
        console.print(state.line(), markup=False)


class _State:
    def __init__(self, sizes: Mapping[str, int], committed: Callable[[], list[str]]) -> None:
        # A manifest does not tell the sizes of its images: then every unit weighs the same.
        self._weights = dict(sizes) if any(sizes.values()) else dict.fromkeys(sizes, 1)
        self._total = sum(self._weights.values())
        self._committed = committed
        self._units, self._weight_before = self._measure()
        self._weight = self._weight_before
        self._images_before = images_done.value
        self._started = time.monotonic()

    def _measure(self) -> tuple[int, int]:
        names = self._committed()
        return len(names), sum(self._weights.get(name, 0) for name in names)

    def look(self) -> None:
        self._units, self._weight = self._measure()

    @property
    def share(self) -> float:
        return self._weight / self._total if self._total else 1.0

    def line(self) -> str:
        images = images_done.value - self._images_before
        seconds = max(time.monotonic() - self._started, 1e-6)
        done = self._weight - self._weight_before
        left = f", {_duration(seconds * (self._total - self._weight) / done)} left" if done else ""
        return (
            f"{self._units:,}/{len(self._weights):,} units, {images:,} images, {images / seconds:,.0f} images/s{left}"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
