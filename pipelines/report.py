"""The evaluation report of a run: its facts as JSON (``report.json``), and those as text. The page is ``report_page``.

Everything that is shown is first in the JSON, so that a report can be rendered again from it alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from model.evaluation import metric_table, printable_name
from model.metrics import MetricCounts, compute, curve_points
from pipelines import report_page

BAR_WIDTH = 40
MATRIX_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class ReportSource:
    """What a run directory gives for its report.

    Attributes:
        run: the content of ``run.json``, shown as it is.
        classes: class names in the model's order.
        positive_class: the class that precision, recall and the curves speak of.
        counts: merged over all committed units.
        images, predictions, failures: numbers of images read, classified and failed.
        failure_codes: failures by ``stage/code``, such as ``decode/truncated``.
        units: number of committed work units.
        unit_failures: (source, message) of each shard that was cut or gone.
        seconds: sum of the units' seconds of work; units run at the same time, so a run may take less.
    """

    run: Mapping[str, Any]
    classes: tuple[str, ...]
    positive_class: str
    counts: MetricCounts
    images: int
    predictions: int
    failures: int
    failure_codes: Mapping[str, int]
    units: int
    unit_failures: Sequence[tuple[str, str]]
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small image that the report may show; ``score`` is the predicted class' probability in [0, 1]."""

    image_id: str
    label: str | None
    predicted_class: str
    score: float
    jpeg: bytes


def build_report(source: ReportSource) -> dict[str, Any]:
    """The report as a JSON-ready mapping; equal sources give equal reports.

    Keys: the fields of ``source`` but ``counts``; ``images_per_second`` of work, or None; ``metrics``, see
    :func:`model.metrics.compute`; ``curve``, see :func:`model.metrics.curve_points`; ``calibration``, per filled bin
    ``confidence`` (mean), ``accuracy`` and ``count``; ``score_histogram``, counts in 100 equal bins over [0, 1].

    Raises:
        ValueError: the counts are of other classes, or of another number of rows than ``predictions``.
    """
    counts = source.counts
    if counts.classes != source.classes:
        raise ValueError(f"the counts are of {list(counts.classes)}, the report of {list(source.classes)}")
    if counts.rows != source.predictions:
        raise ValueError(f"the counts are of {counts.rows} rows, the run has {source.predictions} predictions")
    bins = zip(counts.calibration_count, counts.calibration_correct, counts.calibration_confidence, strict=True)
    curve = curve_points(counts, source.positive_class)
    return {
        "run": dict(source.run),
        "classes": list(source.classes),
        "positive_class": source.positive_class,
        "images": source.images,
        "predictions": source.predictions,
        "failures": source.failures,
        "failure_codes": dict(sorted(source.failure_codes.items())),
        "units": source.units,
        "unit_failures": [{"source": name, "message": message} for name, message in sorted(source.unit_failures)],
        "seconds": round(source.seconds, 3),
        "images_per_second": round(source.images / source.seconds, 1) if source.seconds > 0 else None,
        "metrics": compute(counts, source.positive_class),
        "curve": {name: [round(value, 6) for value in values] for name, values in curve.items()},
        "calibration": [
            {"confidence": round(float(sure / n), 6), "accuracy": round(float(right / n), 6), "count": int(n)}
            for n, right, sure in bins
            if n
        ],
        "score_histogram": counts.score_histogram.tolist(),
    }


def render_html(report: Mapping[str, Any], thumbnails: Sequence[Thumbnail]) -> str:
    """The report as one page that needs no other file and no network; see :mod:`pipelines.report_page`."""
    return report_page.render(report, thumbnails)


def render_text(report: Mapping[str, Any]) -> str:
    """The report as plain text, for a terminal or a log; ends with a line break."""
    metrics = report["metrics"]
    parts = [" ".join([*report_page.summary(report), *report_page.warnings(report)])]
    if metrics["labelled"]:
        parts += [metric_table(metrics), _confusion_text(report["classes"], metrics["confusion_matrix"])]
    else:
        parts += [_bars("Predicted class", metrics["predicted"]), _bars("Score", _tenths(report["score_histogram"]))]
    if metrics["unknown"]:
        parts.append(_bars("Labels that are none of the model's classes", metrics["unknown_labels"]))
    if report["failures"]:
        parts.append(_bars("Failures", report["failure_codes"]))
    if report["unit_failures"]:
        shards = [
            f"  {printable_name(unit['source'], 200)}: {printable_name(unit['message'], 200)}"
            for unit in report["unit_failures"]
        ]
        parts.append("\n".join(["Shards that were cut or gone", *shards]))
    return "\n\n".join(parts) + "\n"


def _confusion_text(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    names = [printable_name(name) for name in classes]
    left = max(len(name) for name in names)
    headers = names
    title = "Confusion matrix (rows: label, columns: predicted)"
    if left + sum(max(len(name), 7) + 2 for name in names) > MATRIX_WIDTH:
        headers = [f"[{number}]" for number in range(1, len(names) + 1)]
        names = [f"{header:>4} {name}" for header, name in zip(headers, names, strict=True)]
        left += 5
    widths = [
        max(len(header), *(len(f"{row[column]:,}") for row in matrix)) + 2 for column, header in enumerate(headers)
    ]
    lines = [" " * left + "".join(f"{header:>{width}}" for header, width in zip(headers, widths, strict=True))]
    for name, row in zip(names, matrix, strict=True):
        lines.append(f"{name:<{left}}" + "".join(f"{n:>{width},}" for n, width in zip(row, widths, strict=True)))
    return "\n".join([title, "", *lines])


def _bars(title: str, values: Mapping[str, int]) -> str:
    names = {name: printable_name(name) for name in values}
    width = max((len(name) for name in names.values()), default=0)
    total, most = sum(values.values()), max(values.values(), default=0)
    lines = []
    for name, n in values.items():
        share = report_page.percent(n / total) if total else ""
        lines.append(f"  {names[name]:<{width}}  {n:>9,}  {share:>8}  {'#' * _bar_length(n, most)}".rstrip())
    return "\n".join([title, *lines])


def _bar_length(value: int, most: int) -> int:
    # One mark for the smallest value: a bar that rounds to nothing would hide it.
    return max(1, round(BAR_WIDTH * value / most)) if value else 0


def _tenths(histogram: Sequence[int]) -> dict[str, int]:
    return {f"{k / 10:.1f} to {(k + 1) / 10:.1f}": sum(histogram[10 * k : 10 * k + 10]) for k in range(10)}
