"""A run's report as one HTML page: no script, no outside address, light and dark, for screen, phone and paper.

The plots are SVG written here rather than by a plotting library: they take the page's colours in light and dark, and a
worker that writes the report needs no plotting library. Names, ids and messages come from the input and are escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.report import Thumbnail

MAX_THUMBNAILS = 48
# With more classes, the columns of the confusion matrix have numbers for heads: names would be wider than a screen.
MANY_CLASSES = 8

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --line: #d9dee4; --page: #ffffff; --card: #f5f7f9;
  --hit: 37 99 175; --miss: 200 80 30; --warn: #fff4df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #a0abb6; --line: #39414a; --page: #14181c;
  --card: #1d2329; --hit: 96 160 235; --miss: 235 125 75; --warn: #3a2e14; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 3rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .9rem; }
.warn { background: var(--warn); border-radius: .5rem; padding: .6rem .9rem; max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .6rem; margin: 1.2rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .7rem .8rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.4; white-space: nowrap; }
.tile span { display: block; line-height: 1.35; overflow-wrap: anywhere; color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
th:first-child, td:first-child, .text td, .text th { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { min-width: 7rem; max-width: 22rem; }
.matrix td, .matrix thead th { text-align: center; vertical-align: middle; min-width: 3.4rem; max-width: 9rem;
  overflow-wrap: break-word; }
.matrix tbody th { min-width: 7rem; max-width: 14rem; vertical-align: middle; }
.many td, .many thead th { padding: .3rem .4rem; font-size: .85rem; min-width: 2.6rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.4rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .95rem; }
svg { display: block; width: 100%; max-width: 30rem; height: auto; font-size: 12px; }
svg text { fill: var(--soft); } .grid { stroke: var(--line); fill: none; }
.curve { stroke: rgb(var(--hit)); stroke-width: 2; fill: none; stroke-linejoin: round; }
.ideal { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; } .dot { fill: rgb(var(--miss)); }
.bar { fill: rgb(var(--hit)); }
.thumbnails { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem; }
.thumbnails img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--card); border-radius: .4rem; }
.thumbnails figcaption { font-weight: 400; font-size: .82rem; line-height: 1.35; overflow-wrap: anywhere; }
figcaption .soft { font-size: inherit; }
@media (max-width: 30rem) { .thumbnails { grid-template-columns: 1fr 1fr; } table { font-size: .83rem; }
  th, td { padding: .3rem .3rem; } td:first-child { min-width: 4.5rem; } }
@media print { body { max-width: none; font-size: 11px; padding: 0; } h2 { break-after: avoid; }
  figure, .tile, tr { break-inside: avoid; } .wide { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def percent(share: float) -> str:
    """A share of 1 as ``98.76 %``; one that is not all or nothing is never rounded to look so."""
    if 0.9999 < share < 1:
        return ">99.99 %"
    if 0 < share < 0.0001:
        return "<0.01 %"
    return f"{share:.2%}".replace("%", " %")


def count_of(number: int, noun: str) -> str:
    """``1 image``, ``12,056 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def summary(report: Mapping[str, Any]) -> list[str]:
    """What a run came to, in a few plain sentences."""
    metrics = report["metrics"]
    sentences = [f"{count_of(report['images'], 'image')} in {count_of(report['units'], 'work unit')}."]
    if report["failures"]:
        sentences.append(f"{report['predictions']:,} were classified; {report['failures']:,} failed.")
    elif report["images"]:
        sentences.append("All were classified.")
    if metrics["labelled"]:
        low, high = metrics["accuracy_interval"]
        sentences.append(
            f"Of {count_of(metrics['labelled'], 'labelled image')}, {percent(metrics['accuracy'])} were classified"
            f" correctly (95 % interval {percent(low)} to {percent(high)})."
        )
    elif report["predictions"]:
        reason = "No image has a label of the model's classes" if metrics["unknown"] else "The images have no labels"
        sentences.append(f"{reason}, so accuracy is not known.")
    return sentences


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before trusting the metrics: images that are missing or count in none."""
    metrics = report["metrics"]
    sentences = []
    if report["unit_failures"]:
        sentences.append(f"{count_of(len(report['unit_failures']), 'shard')} could not be read to the end.")
    if metrics["unknown"]:
        images = count_of(metrics["unknown"], "image")
        names = list(metrics["unknown_labels"])
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        classes = ", ".join(report["classes"])
        sentences.append(f"Not in the metrics: {images} labelled {shown}; the model's classes are {classes}.")
    if metrics["labelled"] and metrics["unlabelled"]:
        sentences.append(f"Not in the metrics: {count_of(metrics['unlabelled'], 'image')} without a label.")
    return sentences


def render(report: Mapping[str, Any], thumbnails: Sequence[Thumbnail]) -> str:
    """The page of a report.

    Args:
        report: what :func:`pipelines.report.build_report` gives, or the same read back from JSON.
        thumbnails: images to choose from; the most confident mistakes are shown, else the least certain images.
    """
    title = f"Classification of {report['run'].get('settings', {}).get('pattern') or 'images'}"
    parts = [_head(title, report), _results(report), _plots(report), _thumbnails(report, thumbnails)]
    parts += [_failures(report), _provenance(report)]
    return PAGE.format(title=_text(title), style=STYLE, body="\n".join(part for part in parts if part))


def _text(value: object) -> str:
    # A file name may hold bytes that are no UTF-8; Python's stand-ins for them cannot be written to a page.
    return html.escape(str(value).encode("utf-8", "replace").decode())


def _head(title: str, report: Mapping[str, Any]) -> str:
    metrics, positive = report["metrics"], report["positive_class"]
    tiles = [(f"{report['images']:,}", "images")]
    if metrics["labelled"]:
        tiles.append((percent(metrics["accuracy"]), "accuracy"))
        # Without an image of the class they are 0 by convention, which as a headline would read as a failure.
        if metrics["per_class"][positive]["support"]:
            tiles += [
                (percent(metrics["precision"]), f"precision of {positive}"),
                (percent(metrics["recall"]), f"recall of {positive}"),
                (f"{metrics['f1']:.4f}", f"F1 of {positive}"),
            ]
    elif report["predictions"]:
        found = metrics["predicted"][positive]
        tiles += [
            (f"{found:,}", f"predicted {positive}"),
            (percent(found / report["predictions"]), "of the classified"),
        ]
    tiles.append((f"{report['failures']:,}", "failure" if report["failures"] == 1 else "failures"))
    if report["images_per_second"]:
        tiles.append((f"{report['images_per_second']:,.0f}", "images per second of work"))
    cells = "".join(f'<div class="tile"><b>{_text(value)}</b><span>{_text(name)}</span></div>' for value, name in tiles)
    said = " ".join(summary(report)).replace(" %", "\N{NO-BREAK SPACE}%")
    text = f"<h1>{_text(title)}</h1><p>{_text(said)}</p>"
    if trouble := warnings(report):
        text += f'<p class="warn">{_text(" ".join(trouble))}</p>'
    return f'{text}<div class="tiles">{cells}</div>'


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell) or '&nbsp;'}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _results(report: Mapping[str, Any]) -> str:
    metrics = report["metrics"]
    if not metrics["labelled"]:
        total = max(1, report["predictions"])
        rows = [(name, f"{n:,}", percent(n / total)) for name, n in metrics["predicted"].items()]
        return "<h2>Predicted classes</h2>" + _table(("class", "images", "share"), rows)
    columns = ("precision", "recall", "f1")
    named = [*metrics["per_class"].items(), ("macro average", metrics["macro_avg"])]
    rows = [
        (name, *(f"{row[column]:.4f}" for column in columns), f"{row['support']:,}")
        for name, row in [*named, ("weighted average", metrics["weighted_avg"])]
    ]
    ranking = {"ROC AUC": metrics["roc_auc"], "average precision": metrics["average_precision"]}
    extras = {**ranking, "Matthews correlation": metrics["mcc"], "expected calibration error": metrics["ece"]}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in extras.items() if value is not None)
    return (
        f"<h2>Results by class</h2>{_table(('class', 'precision', 'recall', 'F1', 'images'), rows)}"
        f'<p class="soft">Positive class: {_text(report["positive_class"])}. {_text(shown)}.</p>'
        + _confusion(report["classes"], metrics["confusion_matrix"])
    )


def _confusion(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    many = len(classes) > MANY_CLASSES
    numbers = [f"[{number}]" for number in range(1, len(classes) + 1)]
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in (numbers if many else classes))
    body = []
    for number, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        cells = []
        for column, n in enumerate(row):
            # At most 55 % of colour, so that the page's text stays readable on it in light and dark.
            alpha = 0.55 * n / max(1, sum(row))
            colour = "--hit" if column == number else "--miss"
            cells.append(f'<td style="background: rgb(var({colour}) / {alpha:.3f})">{n:,}</td>')
        title = f"{numbers[number]} {name}" if many else name
        body.append(f'<tr><th scope="row">{_text(title)}</th>{"".join(cells)}</tr>')
    kind = "matrix many" if many else "matrix"
    return (
        '<h2>Confusion matrix</h2><p class="soft">Rows are labels, columns are predictions; colour is the share of the'
        f' label\'s images.</p><div class="wide"><table class="{kind}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _plots(report: Mapping[str, Any]) -> str:
    curve, positive, metrics = report["curve"], report["positive_class"], report["metrics"]
    figures = []
    if curve["threshold"]:
        call = metrics["recall"]
        recall, precision = [0.0, *curve["recall"]], [curve["precision"][0], *curve["precision"]]
        caption = f"Precision and recall of {positive} (average precision {metrics['average_precision']:.4f})"
        operating = (call, metrics["precision"])
        figures.append(_figure(caption, _line_plot(recall, precision, "recall", "precision", dot=operating)))
        rates = [0.0, *curve["false_positive_rate"]]
        caption = f"ROC of {positive} (area {metrics['roc_auc']:.4f})"
        operating = (_false_positive_rate(report), call)
        plot = _line_plot(rates, recall, "false positive rate", "true positive rate", dot=operating, ideal=True)
        figures.append(_figure(caption, plot))
    if report["calibration"]:
        sure = [bin_["confidence"] for bin_ in report["calibration"]]
        right = [bin_["accuracy"] for bin_ in report["calibration"]]
        plot = _line_plot(sure, right, "mean score", "share correct", ideal=True, markers=True)
        figures.append(_figure(f"Calibration (expected error {metrics['ece']:.4f})", plot))
    if report["predictions"]:
        figures.append(_figure("Score of the predicted class", _bar_plot(report["score_histogram"])))
    note = '<p class="soft">The dot is the decision that the run made.</p>' if curve["threshold"] else ""
    return f'<h2>Curves and scores</h2><div class="plots">{"".join(figures)}</div>{note}' if figures else ""


def _false_positive_rate(report: Mapping[str, Any]) -> float:
    matrix, positive = report["metrics"]["confusion_matrix"], report["classes"].index(report["positive_class"])
    others = [row for number, row in enumerate(matrix) if number != positive]
    return float(sum(row[positive] for row in others) / sum(map(sum, others)))


def _figure(caption: str, plot: str) -> str:
    return f"<figure><figcaption>{_text(caption)}</figcaption>{plot}</figure>"


LEFT, TOP, WIDTH, HEIGHT = 66, 12, 330, 210


def _frame(x_title: str, y_title: str, y_ticks: Sequence[tuple[float, str]]) -> str:
    marks = []
    for height, text in y_ticks:
        y = TOP + HEIGHT * (1 - height)
        marks.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDTH}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for fifth in range(6):
        x = LEFT + WIDTH * fifth / 5
        marks.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{fifth / 5:.1f}</text>')
    marks.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 33}" text-anchor="middle">{x_title}</text>')
    middle = TOP + HEIGHT / 2
    marks.append(f'<text transform="rotate(-90 11 {middle})" x="11" y="{middle}" text-anchor="middle">{y_title}</text>')
    return "".join(marks)


def _svg(label: str, content: str) -> str:
    size = f"0 0 {LEFT + WIDTH + 14} {TOP + HEIGHT + 40}"
    return f'<svg viewBox="{size}" role="img" aria-label="{label}">{content}</svg>'


def _line_plot(
    x: Sequence[float],
    y: Sequence[float],
    x_title: str,
    y_title: str,
    *,
    dot: tuple[float, float] | None = None,
    ideal: bool = False,
    markers: bool = False,
) -> str:
    """A line through points in the unit square; ``ideal`` draws the diagonal, ``dot`` marks one more point."""

    def place(across: float, up: float) -> tuple[str, str]:
        return f"{LEFT + WIDTH * across:.1f}", f"{TOP + HEIGHT * (1 - up):.1f}"

    # A curve has up to 1,000 points, many of them the same tenth of a pixel.
    points = list(dict.fromkeys(place(across, up) for across, up in zip(x, y, strict=True)))
    content = _frame(x_title, y_title, [(tick / 5, f"{tick / 5:.1f}") for tick in range(6)])
    if ideal:
        content += f'<path class="ideal" d="M{LEFT} {TOP + HEIGHT}L{LEFT + WIDTH} {TOP}"/>'
    content += f'<polyline class="curve" points="{" ".join(f"{a},{b}" for a, b in points)}"/>'
    if markers:
        content += "".join(f'<circle class="bar" cx="{a}" cy="{b}" r="3.5"/>' for a, b in points)
    if dot:
        a, b = place(*dot)
        content += f'<circle class="dot" cx="{a}" cy="{b}" r="4.5"/>'
    return _svg(f"{y_title} against {x_title}", content)


def _bar_plot(histogram: Sequence[int]) -> str:
    """A histogram over [0, 1]; heights are square roots, so that the few uncertain images stay visible."""
    most = max(1, *histogram)
    ticks = [((n / most) ** 0.5, f"{n:,}") for n in sorted({0, round(0.1 * most), round(0.4 * most), most})]
    width = WIDTH / len(histogram)
    bars = []
    for number, n in enumerate(histogram):
        height = HEIGHT * (n / most) ** 0.5
        if n:
            place = f'x="{LEFT + number * width:.1f}" y="{TOP + HEIGHT - height:.1f}"'
            bars.append(f'<rect class="bar" {place} width="{width * 0.85:.1f}" height="{max(1.0, height):.1f}"/>')
    return _svg("images by score", _frame("score", "images (square-root scale)", ticks) + "".join(bars))


def _thumbnails(report: Mapping[str, Any], thumbnails: Sequence[Thumbnail]) -> str:
    classes = set(report["classes"])
    wrong = [t for t in thumbnails if t.label in classes and t.label != t.predicted_class]
    if wrong:
        shown = sorted(wrong, key=lambda t: (-t.score, t.image_id))[:MAX_THUMBNAILS]
        matrix = report["metrics"]["confusion_matrix"]
        mistakes = sum(map(sum, matrix)) - sum(row[number] for number, row in enumerate(matrix))
        title, note = "Most confident mistakes", f"{len(shown):,} of {count_of(mistakes, 'mistake')}."
    else:
        shown = sorted(thumbnails, key=lambda t: (t.score, t.image_id))[:MAX_THUMBNAILS]
        title, note = "Least certain images", f"The {count_of(len(shown), 'image')} with the lowest scores."
    if not shown:
        return ""
    return f'<h2>{title}</h2><p class="soft">{note}</p><div class="thumbnails">{"".join(map(_thumbnail, shown))}</div>'


def _thumbnail(thumbnail: Thumbnail) -> str:
    label = "" if thumbnail.label is None else f"label {_text(thumbnail.label)}<br>"
    image = base64.b64encode(thumbnail.jpeg).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{image}"><figcaption>{label}'
        f"predicted <b>{_text(thumbnail.predicted_class)}</b><br>score {thumbnail.score:.4f}<br>"
        f'<span class="soft">{_text(thumbnail.image_id)}</span></figcaption></figure>'
    )


def _failures(report: Mapping[str, Any]) -> str:
    parts = []
    if report["failure_codes"]:
        rows = [(code, f"{n:,}") for code, n in report["failure_codes"].items()]
        parts.append("<h2>Failures</h2>" + _table(("stage and kind", "images"), rows))
    if report["unit_failures"]:
        rows = [(unit["source"], unit["message"]) for unit in report["unit_failures"]]
        parts.append("<h2>Shards that were cut or gone</h2>" + _table(("shard", "what happened"), rows, "text"))
    if report["metrics"]["unknown"]:
        rows = [(label, f"{n:,}") for label, n in report["metrics"]["unknown_labels"].items()]
        parts.append("<h2>Labels that are none of the model's classes</h2>" + _table(("label", "images"), rows))
    return "".join(parts)


def _provenance(report: Mapping[str, Any]) -> str:
    rows = list(_flat(report["run"]))
    rows.append(("seconds of work", f"{report['seconds']:,.1f}"))
    return "<h2>Provenance</h2>" + _table(("what", "value"), rows, "text")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif value is not None:
            yield name, str(value)
