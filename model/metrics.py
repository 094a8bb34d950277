"""Mergeable counts of a classification, and the metrics that follow from them. NumPy only.

Counts are sums over rows, so those of any partition of the rows merge to those of the whole; a metric is computed once,
from the merged counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

SCORE_BINS = 100
RANK_BINS = 1000
CALIBRATION_BINS = 15
Z_95 = 1.959963984540054
# Confidences are rounded to this step before they are summed: sums of such numbers are exact in float64 for 2**29 rows
# a bin, so that the order in which a runner merges the counts does not show in the last digit of a report.
CONFIDENCE_STEP = 2.0**-24

# The inner edges of the bins of a probability: 500 equally spaced ones, for models that are unsure, and 499 equally
# spaced in the logit, because a trained model's probabilities crowd within 1e-3 of 0 and 1. 16 is the logit of
# 1 - 1e-7, near the largest float32 below 1.
RANK_EDGES: Floats = np.sort(
    np.concatenate([np.linspace(0.0, 1.0, 502)[1:-1], 1.0 / (1.0 + np.exp(-np.linspace(-16.0, 16.0, 499)))])
)

_DENSE = ("confusion", "predicted", "calibration_count", "calibration_correct", "calibration_confidence")
_SPARSE = ("score_histogram", "rank_histogram")


@dataclasses.dataclass(frozen=True, eq=False)
class MetricCounts:
    """Sums over classified rows. A row is labelled when its label is one of the classes.

    Attributes:
        classes: class names in the order of all class axes.
        confusion: int64[classes, classes], labelled rows by label (row) and predicted class (column).
        predicted: int64[classes], all rows by predicted class.
        score_histogram: int64[100], all rows by the predicted class' probability, in equal bins [k/100, (k+1)/100).
        rank_histogram: int64[classes, 2, 1000], labelled rows by their probability of each class, for rows of another
            class (0) and of that class (1); the bins lie between ``RANK_EDGES``.
        calibration_count: int64[15], labelled rows by the predicted class' probability, in equal bins (k/15, (k+1)/15].
        calibration_correct: int64[15], those of them that are right.
        calibration_confidence: float64[15], the sum of their probabilities, each rounded to 2**-24.
        unknown_labels: rows whose label is none of the classes, by that label; they are in no labelled count.
    """

    classes: tuple[str, ...]
    confusion: Integers
    predicted: Integers
    score_histogram: Integers
    rank_histogram: Integers
    calibration_count: Integers
    calibration_correct: Integers
    calibration_confidence: Floats
    unknown_labels: dict[str, int]

    @classmethod
    def zero(cls, classes: Sequence[str]) -> MetricCounts:
        """The counts of no rows, with which merging changes nothing."""
        size = len(classes)
        return cls(
            classes=tuple(classes),
            confusion=np.zeros((size, size), np.int64),
            predicted=np.zeros(size, np.int64),
            score_histogram=np.zeros(SCORE_BINS, np.int64),
            rank_histogram=np.zeros((size, 2, RANK_BINS), np.int64),
            calibration_count=np.zeros(CALIBRATION_BINS, np.int64),
            calibration_correct=np.zeros(CALIBRATION_BINS, np.int64),
            calibration_confidence=np.zeros(CALIBRATION_BINS, np.float64),
            unknown_labels={},
        )

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], MetricCounts], tuple[dict[str, Any]]]:
        # A runner keeps and sends the counts of every work unit: most bins are empty, and 34 kB become one.
        return MetricCounts.from_json, (self.to_json(),)

    @property
    def rows(self) -> int:
        """All rows, labelled or not."""
        return int(self.predicted.sum())

    @property
    def labelled(self) -> int:
        """Rows whose label is one of the classes."""
        return int(self.confusion.sum())

    def merge(self, other: MetricCounts) -> MetricCounts:
        """The counts of both sets of rows; associative and commutative.

        Raises:
            ValueError: the class names or their order differ.
        """
        if self.classes != other.classes:
            raise ValueError(f"counts of classes {list(self.classes)} and {list(other.classes)} do not merge")
        sums = {name: getattr(self, name) + getattr(other, name) for name in _DENSE + _SPARSE}
        unknown = Counter(self.unknown_labels) + Counter(other.unknown_labels)
        return MetricCounts(classes=self.classes, unknown_labels=dict(sorted(unknown.items())), **sums)

    def __add__(self, other: MetricCounts) -> MetricCounts:
        return self.merge(other)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; of the histograms only the filled bins are kept, by their flat index."""
        values: dict[str, Any] = {"classes": list(self.classes), "unknown_labels": dict(self.unknown_labels)}
        for name in _DENSE:
            values[name] = getattr(self, name).tolist()
        for name in _SPARSE:
            flat = getattr(self, name).ravel()
            filled = np.flatnonzero(flat)
            values[name] = {"bins": filled.tolist(), "counts": flat[filled].tolist()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MetricCounts:
        """The counts that :meth:`to_json` wrote.

        Raises:
            KeyError, ValueError, IndexError: the mapping is none of these.
        """
        counts = cls.zero(values["classes"])
        counts.unknown_labels.update(values["unknown_labels"])
        for name in _DENSE:
            array = getattr(counts, name)
            read = np.asarray(values[name], array.dtype)
            if read.shape != array.shape:
                raise ValueError(f"{name} has shape {read.shape}, not {array.shape}")
            array[...] = read
        for name in _SPARSE:
            filled = np.asarray(values[name]["bins"], np.intp)
            getattr(counts, name).reshape(-1)[filled] = values[name]["counts"]
        return counts


def count(
    classes: Sequence[str],
    labels: Sequence[str | None],
    predicted: NDArray[np.integer[Any]],
    probabilities: NDArray[np.floating[Any]],
) -> MetricCounts:
    """Count the rows of a batch.

    Args:
        classes: class names, in the order of the probabilities' columns.
        labels: n class names; None where a row is unlabelled.
        predicted: int[n], indices into ``classes``.
        probabilities: float32[n, classes], in [0, 1].

    Raises:
        ValueError: the lengths differ, an index is out of range, or a probability is not a finite number.
    """
    counts = MetricCounts.zero(classes)
    size, rows = len(classes), len(labels)
    if predicted.shape != (rows,) or probabilities.shape != (rows, size):
        raise ValueError(f"{rows} labels, predicted {predicted.shape}, probabilities {probabilities.shape}: no match")
    if rows == 0:
        return counts
    if int(predicted.min()) < 0 or int(predicted.max()) >= size:
        raise ValueError(f"predicted classes must be in [0, {size})")
    values = probabilities.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("probabilities must be finite numbers")

    index = {name: position for position, name in enumerate(counts.classes)}
    truth = np.array([-1 if label is None else index.get(label, -1) for label in labels], np.int64)
    unknown = Counter(label for label in labels if label is not None and label not in index)
    counts.unknown_labels.update(sorted(unknown.items()))

    scores = values[np.arange(rows), predicted]
    np.add.at(counts.predicted, predicted, 1)
    np.add.at(counts.score_histogram, _bins(np.floor(scores * SCORE_BINS), SCORE_BINS), 1)

    known = truth >= 0
    truth, guess, scores, values = truth[known], predicted[known], scores[known], values[known]
    np.add.at(counts.confusion, (truth, guess), 1)
    ranks = np.searchsorted(RANK_EDGES, values, side="right")
    for column in range(size):
        np.add.at(counts.rank_histogram[column], ((truth == column).astype(np.int64), ranks[:, column]), 1)
    bins = _bins(np.ceil(scores * CALIBRATION_BINS) - 1, CALIBRATION_BINS)
    np.add.at(counts.calibration_count, bins, 1)
    np.add.at(counts.calibration_correct, bins, (truth == guess).astype(np.int64))
    np.add.at(counts.calibration_confidence, bins, np.round(scores / CONFIDENCE_STEP) * CONFIDENCE_STEP)
    return counts


def _bins(values: Floats, size: int) -> Integers:
    return np.clip(values, 0, size - 1).astype(np.int64)


def compute(counts: MetricCounts, positive_class: str) -> dict[str, Any]:
    """The metrics of the counts, JSON-ready; every metric that needs labels is None where no row is labelled.

    Precision, recall, F1 and their macro and weighted averages are those of scikit-learn's ``classification_report``
    over all classes with ``zero_division=0``. ROC AUC and average precision are scikit-learn's for probabilities that
    are equal within a bin of ``rank_histogram``; the true ROC AUC lies within ``roc_auc_error`` of ``roc_auc``,
    and binning changed average precision by 0.005 or less on 1,200 rows of models sure and unsure.
    ``mcc``, Matthews' correlation for any number of classes (Gorodkin 2004), is None where it is undefined, and so are
    the ranking metrics where all labelled rows are of the positive class or none is. ``ece`` is the expected
    calibration error of Guo et al. (2017), taken of the predicted class' probability; ``accuracy_interval`` is Wilson's
    score interval at 95 %.

    Raises:
        ValueError: ``positive_class`` is none of the classes.
    """
    positive = _class_index(counts, positive_class)
    total, labelled = counts.rows, counts.labelled
    unknown = sum(counts.unknown_labels.values())
    metrics: dict[str, Any] = {
        "rows": total,
        "labelled": labelled,
        "unlabelled": total - labelled - unknown,
        "unknown": unknown,
        "unknown_labels": dict(counts.unknown_labels),
        "positive_class": positive_class,
        "predicted": dict(zip(counts.classes, counts.predicted.tolist(), strict=True)),
    }
    if labelled == 0:
        return {**metrics, **dict.fromkeys(_LABELLED_METRICS)}

    true_positives = counts.confusion.diagonal().astype(np.float64)
    support, predicted = counts.confusion.sum(axis=1), counts.confusion.sum(axis=0)
    precision = _ratio(true_positives, predicted)
    recall = _ratio(true_positives, support)
    table = np.stack([precision, recall, _ratio(2 * true_positives, support + predicted)], axis=1)
    roc_auc, roc_auc_error = _roc_auc(counts.rank_histogram[positive])
    correct = int(true_positives.sum())
    rows = [
        {**dict(zip(_COLUMNS, row.tolist(), strict=True)), "support": n}
        for row, n in zip(table, support.tolist(), strict=True)
    ]
    averages = {"macro_avg": table.mean(axis=0), "weighted_avg": (support[:, None] * table).sum(axis=0) / labelled}
    metrics |= {
        "accuracy": correct / labelled,
        "accuracy_interval": list(wilson_interval(correct, labelled)),
        "mcc": _matthews(counts.confusion),
        **dict(zip(_COLUMNS, table[positive].tolist(), strict=True)),
        "roc_auc": roc_auc,
        "roc_auc_error": roc_auc_error,
        "average_precision": _average_precision(counts.rank_histogram[positive]),
        "ece": float(np.abs(counts.calibration_correct - counts.calibration_confidence).sum() / labelled),
        "per_class": dict(zip(counts.classes, rows, strict=True)),
        "confusion_matrix": counts.confusion.tolist(),
    }
    for name, average in averages.items():
        metrics[name] = {**dict(zip(_COLUMNS, average.tolist(), strict=True)), "support": labelled}
    return metrics


_COLUMNS = ("precision", "recall", "f1")
_LABELLED_METRICS = (
    *("accuracy", "accuracy_interval", "mcc", *_COLUMNS, "roc_auc", "roc_auc_error"),
    *("average_precision", "ece", "per_class", "confusion_matrix", "macro_avg", "weighted_avg"),
)


def curve_points(counts: MetricCounts, class_name: str) -> dict[str, list[float]]:
    """The points of the precision-recall and the ROC curve of a class against the rest, JSON-ready.

    Lists of equal length, one entry per filled bin from the highest ``threshold`` (the bin's lower edge, in [0, 1]) to
    the lowest: ``precision``, ``recall`` (the true positive rate) and ``false_positive_rate`` of calling a row positive
    when its probability is the threshold or more. The ROC curve's first point (0, 0) is not among them. The lists are
    empty where the labelled rows hold none of the class or nothing else.

    Raises:
        ValueError: ``class_name`` is none of the classes.
    """
    histogram = counts.rank_histogram[_class_index(counts, class_name)]
    negatives, positives = histogram.sum(axis=1)
    if not negatives or not positives:
        return {"threshold": [], "precision": [], "recall": [], "false_positive_rate": []}
    falling = np.flatnonzero(histogram.sum(axis=0))[::-1]
    false_positives, true_positives = np.cumsum(histogram[:, falling], axis=1)
    return {
        "threshold": np.concatenate([[0.0], RANK_EDGES])[falling].tolist(),
        "precision": (true_positives / (true_positives + false_positives)).tolist(),
        "recall": (true_positives / positives).tolist(),
        "false_positive_rate": (false_positives / negatives).tolist(),
    }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927), in [0, 1]; ``trials`` is 1 or more."""
    share, square = successes / trials, Z_95**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def _class_index(counts: MetricCounts, name: str) -> int:
    if name not in counts.classes:
        raise ValueError(f"class {name!r} is none of {list(counts.classes)}")
    return counts.classes.index(name)


def _ratio(numerator: Floats, denominator: Integers) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _roc_auc(histogram: Integers) -> tuple[float | None, float | None]:
    """Area under the ROC curve as the Mann-Whitney statistic, ties for one half, and half the share of tied pairs."""
    negatives, positives = histogram.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return None, None
    below = np.cumsum(negatives) - negatives
    half_tied = float(positives @ negatives) / 2
    return float((positives @ below + half_tied) / pairs), float(half_tied / pairs)


def _average_precision(histogram: Integers) -> float | None:
    """Sum over falling thresholds of (recall gained x precision there), as scikit-learn defines it."""
    negatives, positives = histogram.astype(np.float64)[:, ::-1]
    if negatives.sum() == 0 or positives.sum() == 0:
        return None
    true_positives, called = np.cumsum(positives), np.cumsum(positives + negatives)
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    return float(positives @ precision / positives.sum())


def _matthews(confusion: Integers) -> float | None:
    total = float(confusion.sum())
    label, predicted = confusion.sum(axis=1).astype(np.float64), confusion.sum(axis=0).astype(np.float64)
    spread = (total**2 - label @ label) * (total**2 - predicted @ predicted)
    return None if spread == 0 else float((np.trace(confusion) * total - label @ predicted) / math.sqrt(spread))
