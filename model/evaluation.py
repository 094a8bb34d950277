"""Metrics as a person reads them: the classification report as text, the confusion matrix as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from model.metrics import MetricCounts, compute

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME_WIDTH = 40


def classification_report(counts: MetricCounts, positive_class: str) -> str:
    """Precision, recall, F1 and support per class, in the layout of scikit-learn's report of that name.

    Raises:
        ValueError: ``positive_class`` is none of the classes.
    """
    metrics = compute(counts, positive_class)
    if not metrics["labelled"]:
        return "No image is labelled, so there is nothing to measure the predictions against.\n"
    return metric_table(metrics) + "\n"


def metric_table(metrics: Mapping[str, Any]) -> str:
    """The same from the metrics of :func:`model.metrics.compute`, of which at least one row is labelled."""
    names = {name: printable_name(name) for name in metrics["per_class"]}
    width = max(len("weighted avg"), *(len(name) for name in names.values()))

    def line(name: str, row: Mapping[str, Any]) -> str:
        cells = "".join(f"{row[column]:>10.4f}" for column in ("precision", "recall", "f1"))
        return f"{name:>{width}}{cells}{row['support']:>10,}"

    lines = [f"{'':>{width}}{'precision':>10}{'recall':>10}{'f1-score':>10}{'support':>10}", ""]
    lines += [line(names[name], row) for name, row in metrics["per_class"].items()]
    lines += ["", f"{'accuracy':>{width}}{metrics['accuracy']:>30.4f}{metrics['labelled']:>10,}"]
    lines += [line("macro avg", metrics["macro_avg"]), line("weighted avg", metrics["weighted_avg"]), ""]
    extras = {
        "ROC AUC": metrics["roc_auc"],
        "average precision": metrics["average_precision"],
        "MCC": metrics["mcc"],
        "ECE": metrics["ece"],
    }
    shown = ", ".join(f"{title} {value:.4f}" for title, value in extras.items() if value is not None)
    return "\n".join([*lines, f"Positive class: {names[metrics['positive_class']]}. {shown}."])


def confusion_matrix_figure(counts: MetricCounts) -> Figure:
    """The confusion matrix as a matplotlib figure: counts in the cells, colour by share of the label's images."""
    from matplotlib.figure import Figure

    size = len(counts.classes)
    side = min(14.0, 3.2 + 0.55 * size)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    support = counts.confusion.sum(axis=1, keepdims=True)
    share = counts.confusion / np.maximum(support, 1)
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    names = [printable_name(name, 24) for name in counts.classes]
    # Without parse_math=False a class name with two dollar signs would be read as a formula.
    axes.set_xticks(range(size), names, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(size), names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    for row, column in np.ndindex(size, size):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{counts.confusion[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10 if size < 8 else 7)
    figure.colorbar(image, ax=axes, label="share of the label's images", shrink=0.8)
    return figure


def printable_name(name: str, width: int = NAME_WIDTH) -> str:
    """A name in one line of at most ``width`` printable characters: names come from folders and may hold anything."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return clean if len(clean) <= width else f"{clean[: width - 13]}\N{HORIZONTAL ELLIPSIS}{clean[-12:]}"
