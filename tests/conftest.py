"""Slow things that several tests share, made once per session."""

from __future__ import annotations

import os

import pytest

# TensorFlow prints its build notes and missing GPUs otherwise; to be set before the first import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder of prepared data: 120 synthetic images, Negative and Positive, three splits of two shards. Read only."""
    from pipelines.preparation import PreparationConfig, prepare
    from pipelines.runner import make_pipeline

    folder = tmp_path_factory.mktemp("tiny") / "data"
    prepare(PreparationConfig("synthetic:120", str(folder), shards=2), lambda: make_pipeline([]))
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_data):
    """Folder of a bundle trained on ``tiny_data``: the small network at 32 pixels. Read only."""
    from model.recipes import recipe_named
    from model.training_job import TrainingJob, run_training

    folder = tiny_data.with_name("bundle")
    config = recipe_named("small").with_overrides(image_size=32, epochs=8, batch_size=8)
    run_training(TrainingJob(data=str(tiny_data), out=str(folder), config=config))
    return folder
