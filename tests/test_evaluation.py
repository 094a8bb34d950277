"""Metrics as a person reads them."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from model import evaluation, metrics


def counted(classes, rows=400, label=True):
    """Counts of random rows whose classes, save for noise, are predicted rightly; also label and prediction."""
    generator = np.random.default_rng(0)
    truth = generator.integers(len(classes), size=rows)
    logits = generator.normal(size=(rows, len(classes))) + 2.5 * np.eye(len(classes))[truth]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    predicted = probabilities.argmax(axis=1)
    labels = [classes[index] if label else None for index in truth]
    return metrics.count(classes, labels, predicted, probabilities), truth, predicted


@pytest.mark.parametrize("classes", [("sound", "crack"), ("sound", "crack", "spalling of the cover")])
def test_classification_report_has_scikit_learns_lines(classes):
    counts, truth, predicted = counted(classes)
    ours = evaluation.classification_report(counts, "crack").splitlines()
    theirs = sklearn_metrics.classification_report(truth, predicted, target_names=classes, digits=4).splitlines()
    assert [line.split() for line in ours[: len(theirs)]] == [line.split() for line in theirs]
    assert len({len(line) for line in ours[: len(theirs)] if line}) == 1
    assert "Positive class: crack. ROC AUC 0.9" in ours[-1]


@pytest.mark.parametrize("classes", [("sound", "crack"), tuple(rf"a long name $\frac$ of {n}" for n in range(20))])
def test_confusion_matrix_figure(classes):
    counts, _, _ = counted(classes)
    figure = evaluation.confusion_matrix_figure(counts)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [f"{n:,}" for n in counts.confusion.ravel()]
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=60)
    width, height = Image.open(stream).size
    labels = [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels()]
    boxes = [label.get_window_extent() for label in labels]
    scale = 60 / figure.dpi
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(box.x1 * scale <= width and box.y1 * scale <= height for box in boxes)


def test_unlabelled_rows_have_no_classification_report():
    counts, _, _ = counted(("sound", "crack"), label=False)
    assert evaluation.classification_report(counts, "crack").startswith("No image is labelled")
