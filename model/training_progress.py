"""What a person sees of a training: stages and progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.spec import TrainConfig
from model.training import Reporter


class ConsoleReporter(Reporter):
    """Prints stages, and one bar per epoch; where stderr is no terminal, one line per epoch."""

    def __init__(self, config: TrainConfig) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._epochs = config.epochs
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

    def callbacks(self) -> list[Any]:
        return [_EpochProgress(self, self._progress, self._epochs)]


class _EpochProgress(keras.callbacks.Callback):
    def __init__(self, reporter: ConsoleReporter, progress: Progress, epochs: int) -> None:
        super().__init__()
        self._reporter = reporter
        self._progress = progress
        self._epochs = epochs
        self._task: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._task = self._progress.add_task(f"epoch {epoch + 1}/{self._epochs}", total=self.params.get("steps"))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._progress.update(self._task, completed=batch + 1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._progress.remove_task(self._task)
        values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        self._reporter.stage(f"epoch {epoch + 1}/{self._epochs}  {values}")
