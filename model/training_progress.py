"""What a person sees of a training: stages and progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from model.spec import Stage
from model.training_loop import Reporter


class ConsoleReporter(Reporter):
    """Prints stages, and one bar per epoch; where stderr is no terminal, one line per epoch."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._epoch: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> ConsoleReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def steps(self, text: str, total: int) -> Callable[[int], None]:
        if not self._console.is_terminal:
            self.stage(f"{text}: {total:,}")
        task = self._progress.add_task(text, total=total)
        return lambda count: self._progress.advance(task, count)

    def epoch(self, stage: Stage, epoch: int, steps: int) -> Callable[[int], None]:
        task = self._epoch = self._progress.add_task(f"{stage.name} {epoch}/{stage.epochs}", total=steps)
        return lambda count: self._progress.advance(task, count)

    def epoch_ended(self, stage: Stage, row: dict[str, Any]) -> None:
        if self._epoch is not None:
            self._progress.remove_task(self._epoch)
        names = ("accuracy", "loss", "val_accuracy", "val_loss")
        values = "  ".join(f"{name} {row[name]:.4f}" for name in names)
        speed = ""
        # Computed features are learnt from in less than a second per epoch: there is no wait to speak of.
        if row["images_per_second"] is not None and not (stage.frozen and stage.augmentation is None):
            speed = f"  {row['images_per_second']:,.0f} images/s, {row['input_wait']:.1%} of it waiting for input"
        self.stage(f"{stage.name} {row['epoch']}/{stage.epochs}  {values}{speed}")
