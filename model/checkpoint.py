"""The state of an unfinished training, in one file that is whole at any moment."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import InputError

Arrays = Sequence[npt.NDArray[Any]]


@dataclasses.dataclass
class TrainingState:
    """How far a training has come, at the end of an epoch.

    Attributes:
        stage: index of the stage under way.
        history: one row per finished epoch, over all stages: ``stage`` (its name), ``epoch`` (from 1 on within the
            stage), ``accuracy``, ``loss``, ``val_accuracy``, ``val_loss``, ``learning_rate``, ``seconds``,
            ``images_per_second``, ``input_wait`` (share of the seconds in [0, 1]).
        arrays: by name: ``model`` and ``optimizer``, the values of their variables; ``kept``, the model's that the
            stage would end with now, where these are others.
    """

    stage: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    arrays: Mapping[str, Arrays] = dataclasses.field(default_factory=dict)


class Checkpoint:
    """Keeps a training's state in a file, put in its place whole at the end of each epoch.

    Args:
        path: the file, of NumPy's ``npz`` format.
        identity: fingerprint of all that decides what the training gives; another training's state is refused.
        writes: False only loads, beside another worker that saves.
    """

    def __init__(self, path: Path, identity: str, writes: bool = True) -> None:
        self.path = path
        self._identity = identity
        self._writes = writes

    def load(self) -> TrainingState | None:
        """The state that was saved last, or None.

        Raises:
            InputError: it is of another training, or damaged.
        """
        try:
            with open(self.path, "rb") as stream, np.load(stream) as stored:
                values = json.loads(str(stored["values"]))
                arrays = {
                    name: [stored[f"{name}/{index}"] for index in range(count)]
                    for name, count in values["arrays"].items()
                }
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} is damaged: remove it, and the training begins anew") from error
        if values["identity"] != self._identity:
            raise InputError(
                f"{self.path} is of a training with other options or data: give those, or remove it to begin anew"
            )
        return TrainingState(values["stage"], values["history"], arrays)

    def save(self, state: TrainingState) -> None:
        """Replace the state in the file."""
        if not self._writes:
            return
        values = {
            "identity": self._identity,
            "stage": state.stage,
            "history": state.history,
            "arrays": {name: len(arrays) for name, arrays in state.arrays.items()},
        }
        content: dict[str, Any] = {
            f"{name}/{index}": array for name, arrays in state.arrays.items() for index, array in enumerate(arrays)
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        with open(unfinished, "wb") as stream:
            np.savez(stream, values=np.array(json.dumps(values)), **content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, self.path)

    def remove(self) -> None:
        """Remove the file: the training has ended."""
        self.path.unlink(missing_ok=True)
