"""What a person sees on stderr while data is prepared in this process."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

REFRESH_SECONDS = 0.25

T = TypeVar("T")


class Tally:
    """Counts of what is done so far, safe to add to from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin at 0."""
        self.checked = 0
        self.shards = 0

    def add(self, checked: int = 0, shards: int = 0) -> None:
        """Count images checked and shards written."""
        with self._lock:
            self.checked += checked
            self.shards += shards


TALLY = Tally()
"""Of this process. Beam hands the work its own copies of every object, so only a module's global is seen by both."""


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or task.finished_speed or 0:,.0f}/s")


@contextlib.contextmanager
def progress_bars(images: int, shards: int, enabled: bool = True) -> Iterator[None]:
    """Show the tally on stderr until the block ends; where stderr is no terminal, only the last state is printed."""
    TALLY.reset()
    if not enabled:
        yield
        return
    stop = threading.Event()
    with Progress(*_columns(), console=Console(file=sys.stderr)) as progress:
        checking = progress.add_task("images checked", total=images)
        writing = progress.add_task("shards written", total=shards, start=False)

        def show() -> None:
            if TALLY.shards and not progress.tasks[writing].started:
                progress.start_task(writing)
            progress.update(checking, completed=TALLY.checked)
            progress.update(writing, completed=TALLY.shards)

        def follow() -> None:
            while not stop.wait(REFRESH_SECONDS):
                show()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            show()


def track(description: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Pass items on and show on stderr how many came."""
    with Progress(*_columns(), console=Console(file=sys.stderr)) as progress:
        yield from progress.track(items, total=total, description=description)


def _columns() -> tuple[ProgressColumn, ...]:
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn()


class DownloadBar:
    """A progress bar with the face that pooch asks of one; it appears only when a download begins."""

    def __init__(self, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=Console(file=sys.stderr))
        self._task = self._progress.add_task(f"downloading {name}", total=None)

    def __enter__(self) -> DownloadBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def total(self) -> int:
        """Bytes to come, 0 where the server does not say."""
        return int(self._progress.tasks[0].total or 0)

    @total.setter
    def total(self, value: int) -> None:
        self._progress.update(self._task, total=value or None)
        self._progress.start()

    def update(self, count: int) -> None:
        """Count bytes that came."""
        self._progress.update(self._task, advance=count)

    def reset(self) -> None:
        """Begin at 0 again."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Stop drawing."""
        # Stopping a bar that never started would print an empty line.
        if self._progress.live.is_started:
            self._progress.stop()
