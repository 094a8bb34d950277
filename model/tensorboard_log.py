"""What TensorBoard shows of a training: one point per epoch, under the names that Keras gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

TRAINING = {
    "accuracy": "epoch_accuracy",
    "loss": "epoch_loss",
    "learning_rate": "epoch_learning_rate",
    "images_per_second": "images_per_second",
    "input_wait": "input_wait",
}
VALIDATION = {"val_accuracy": "epoch_accuracy", "val_loss": "epoch_loss"}


class TensorBoardLog:
    """Writes the history of a training as scalars, in the runs ``train`` and ``validation``.

    Args:
        folder: the log folder.
    """

    def __init__(self, folder: Path) -> None:
        self._runs = (
            (tf.summary.create_file_writer(str(folder / "train")), TRAINING),
            (tf.summary.create_file_writer(str(folder / "validation")), VALIDATION),
        )

    def write(self, epoch: int, row: dict[str, Any]) -> None:
        """Add a row of the history, of the epoch of this number over all stages, from 1 on."""
        for writer, names in self._runs:
            with writer.as_default():
                for key, name in names.items():
                    if row[key] is not None:
                        tf.summary.scalar(name, row[key], epoch)
            writer.flush()

    def close(self) -> None:
        """End the files."""
        for writer, _ in self._runs:
            writer.close()
