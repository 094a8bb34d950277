"""What TensorBoard is given."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from model.tensorboard_log import TensorBoardLog

ROW = {
    "stage": "head",
    "epoch": 1,
    "accuracy": 0.75,
    "loss": 0.5,
    "val_accuracy": 0.625,
    "val_loss": 0.25,
    "learning_rate": 0.125,
    "seconds": 3.0,
    "images_per_second": None,
    "input_wait": None,
}


def scalars(folder):
    """Per name the epochs and values that TensorBoard reads."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(name)]
        for name in events.Tags()["tensors"]
    }


def test_tensorboard_reads_each_epoch_once_under_the_names_of_keras(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.write(1, ROW)
    log.write(2, ROW | {"loss": 0.375, "images_per_second": 64.0, "input_wait": 0.5})
    log.close()
    assert scalars(tmp_path / "train") == {
        "epoch_accuracy": [(1, 0.75), (2, 0.75)],
        "epoch_loss": [(1, 0.5), (2, 0.375)],
        "epoch_learning_rate": [(1, 0.125), (2, 0.125)],
        "images_per_second": [(2, 64.0)],
        "input_wait": [(2, 0.5)],
    }
    assert scalars(tmp_path / "validation") == {
        "epoch_accuracy": [(1, 0.625), (2, 0.625)],
        "epoch_loss": [(1, 0.25), (2, 0.25)],
    }
