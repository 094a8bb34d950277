"""The state of an unfinished training: whole at any moment, and of one training only."""

from __future__ import annotations

import os

import numpy as np
import pytest

from model.checkpoint import Checkpoint, TrainingState
from model.errors import InputError

STATE = TrainingState(
    stage=1,
    history=[{"stage": "head", "epoch": 1, "loss": 0.25, "input_wait": None}],
    arrays={
        "model": [np.arange(12, dtype=np.float32).reshape(3, 4), np.array([1, 2], np.uint32)],
        "optimizer": [np.array(7, np.int64)],
        "kept": [],
    },
)


def test_a_state_is_read_as_it_was_saved(tmp_path):
    Checkpoint(tmp_path / "folder" / "state.npz", "a").save(STATE)
    found = Checkpoint(tmp_path / "folder" / "state.npz", "a").load()
    assert (found.stage, found.history) == (STATE.stage, STATE.history)
    assert found.arrays.keys() == STATE.arrays.keys()
    for name, arrays in STATE.arrays.items():
        assert len(found.arrays[name]) == len(arrays)
        for array, expected in zip(found.arrays[name], arrays, strict=True):
            np.testing.assert_array_equal(array, expected, strict=True)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["state.npz"]


def test_there_is_no_state_before_the_first_and_after_the_last(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.npz", "a")
    assert checkpoint.load() is None
    checkpoint.save(STATE)
    checkpoint.remove()
    assert checkpoint.load() is None
    checkpoint.remove()


def test_the_state_of_another_training_is_refused(tmp_path):
    Checkpoint(tmp_path / "state.npz", "a").save(STATE)
    with pytest.raises(InputError, match=r"state\.npz is of a training with other options or data"):
        Checkpoint(tmp_path / "state.npz", "b").load()


def test_a_damaged_state_is_named(tmp_path):
    path = tmp_path / "state.npz"
    Checkpoint(path, "a").save(STATE)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"state\.npz is damaged: remove it"):
        Checkpoint(path, "a").load()


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state.npz", "a")
    checkpoint.save(STATE)

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(TrainingState(stage=2))
    assert checkpoint.load().stage == 1


def test_a_worker_beside_the_chief_reads_and_does_not_write(tmp_path):
    Checkpoint(tmp_path / "state.npz", "a").save(STATE)
    beside = Checkpoint(tmp_path / "state.npz", "a", writes=False)
    beside.save(TrainingState(stage=5))
    assert beside.load().stage == 1
