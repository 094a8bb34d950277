"""What a training leaves for a person to look at: ``BUNDLE/training``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.dataset import Split
from model.engine import decide
from model.evaluation import classification_report, confusion_matrix_figure
from model.figures import augmented_grid, history_figure, prediction_grid, sample_grid, write_architecture
from model.spec import TrainConfig
from model.training import Evaluation, Trained

AUGMENTED_ORIGINALS = 4
AUGMENTED_VIEWS = 7
DOTS_PER_INCH = 110


def record_training(
    folder: Path,
    config: TrainConfig,
    trained: Trained,
    sample: Split,
    counts: Sequence[int],
    test: Split,
    metrics: Mapping[str, Any],
) -> bool:
    """Write history, evaluation and pictures.

    Args:
        folder: ``BUNDLE/training``.
        config: the recipe.
        trained: its outcome.
        sample: some images of the training split.
        counts: how many it has of each class.
        test: the test split.
        metrics: what ``model.json`` says of the evaluations.

    Returns:
        Whether the architecture was drawn: that takes Graphviz.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "history.json", trained.history)
    _write_json(folder / "evaluation.json", metrics)
    report = classification_report(trained.test.counts, trained.spec.positive_class)
    (folder / "classification_report.txt").write_text(report, encoding="utf-8")
    classes = trained.spec.classes
    predicted = decide(trained.test_probabilities, trained.spec)
    scores = np.take_along_axis(trained.test_probabilities, predicted[:, None], axis=1)[:, 0]
    figures = {
        "confusion_matrix.png": confusion_matrix_figure(trained.test.counts),
        "samples.png": sample_grid(sample.pixels, sample.labels, classes, seed=config.seed, counts=counts),
        "curves.png": history_figure(trained.history, _point(trained.before)),
        "test_images.png": prediction_grid(test.pixels, test.labels, predicted, scores, classes, seed=config.seed),
    }
    augmentations = {stage.augmentation for stage in config.stages} - {None}
    for name in sorted(filter(None, augmentations)):
        views = _augmented_views(name, config.seed, sample.pixels[:AUGMENTED_ORIGINALS])
        figures[f"augmented_{name}.png"] = augmented_grid(sample.pixels[:AUGMENTED_ORIGINALS], views)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DOTS_PER_INCH)
    return write_architecture(trained.serving, folder)


def _augmented_views(name: str, seed: int, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    from model.augmentation import build_augmentation

    augmentation = build_augmentation(name, seed)
    repeated = np.repeat(pixels, AUGMENTED_VIEWS, axis=0).astype(np.float32)
    views = np.asarray(augmentation(repeated, training=True))
    return views.round().clip(0, 255).astype(np.uint8).reshape(len(pixels), AUGMENTED_VIEWS, *pixels.shape[1:])


def _point(evaluation: Evaluation) -> dict[str, float]:
    confusion = evaluation.counts.confusion
    return {"accuracy": float(np.trace(confusion) / max(confusion.sum(), 1)), "loss": evaluation.loss}


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
