"""Medians and ratios over the rounds, as data and as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.contenders import LIMIT, OURS, Contender
from benchmarks.rounds import Result

COLUMNS = (
    "",
    "images/s",
    "lowest to highest",
    "ours is faster by",
    "whole command, s",
    "ours is shorter by",
    "peak MiB, largest process",
    "peak MiB, all",
    "other class than ours",
    "largest difference",
)

NOTES = """\
The first row is **ours**. *images/s*: steady work, from the first image read to the last result stored, the network
being loaded; the median over the rounds. *whole command*: the process from start to end. *faster by* and *shorter by*:
the median over the rounds of the ratio within a round. *peak*: the kernel's record of the largest process, and all
processes together with shared pages counted once, looked at twice a second. *other class than ours*: images with
another predicted class, and the largest difference of any probability. Other decoders and resize kernels give slightly
other pixels: Keras resizes by TensorFlow's bilinear without antialiasing, and the network's uint8 input cuts off the
fractions; Daft decodes and resizes in Rust. A few images near the threshold may so change sides. With the same pixels
(bare loop, Beam, Ray, Spark) none should.

The workers of Ray, Daft and Spark load the network while the job runs: the slowest worker's loading is taken off their
time, though the job may read images meanwhile; the rule favours them. *alone*: the engine on batches of
1,024 images decoded before, again and again."""


def summarise(rows: Sequence[Contender], results: Sequence[Result]) -> list[dict[str, Any]]:
    """One mapping per contender: medians over its rounds, and the first contender's advantage over it."""
    by_name: dict[str, dict[int, Result]] = {row.name: {} for row in rows}
    errors: dict[str, str] = {}
    for result in results:
        if result.error:
            errors[result.contender] = result.error
        else:
            by_name[result.contender][result.round] = result
    ours = by_name[rows[0].name]
    return [_summary(row, by_name[row.name], ours, errors.get(row.name, "")) for row in rows]


def _summary(row: Contender, own: Mapping[int, Result], ours: Mapping[int, Result], error: str) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": row.name, "title": row.title, "kind": row.kind, "engine": row.engine}
    if not own:
        return {**summary, "error": error or "not run"}
    rates = [result.rate for result in own.values()]
    summary |= {
        "error": error,
        "rounds": len(own),
        "images": min(result.images for result in own.values()),
        "images_per_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "whole_seconds": statistics.median(result.whole_seconds for result in own.values()),
        "peak_process_mb": max(result.peak_process_mb for result in own.values()),
        "peak_total_mb": max(result.peak_total_mb for result in own.values()),
        "compared": min(result.compared for result in own.values()),
        "other_class": max(result.other_class for result in own.values()),
        "largest_difference": max(result.largest_difference for result in own.values()),
        "ours_faster_by": median_ratio(ours, own, lambda one, other: one.rate / other.rate),
        "ours_shorter_by": median_ratio(ours, own, lambda one, other: other.whole_seconds / one.whole_seconds),
    }
    return summary


def median_ratio(
    ours: Mapping[int, Result], theirs: Mapping[int, Result], ratio: Callable[[Result, Result], float]
) -> float | None:
    """Median of a ratio over the rounds that both have; None where there is none."""
    both = [ratio(ours[number], theirs[number]) for number in ours if number in theirs]
    return statistics.median(both) if both else None


def of_the_limit(rows: Sequence[Contender], results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """For each engine, the share of the bare loop's and of the lone engine's rate that the pipeline reaches."""
    rates = {(result.contender, result.round): result for result in results if not result.error}
    shares: dict[str, dict[str, float]] = {}
    for row in (row for row in rows if row.kind == OURS):
        for limit in (limit for limit in rows if limit.kind == LIMIT and limit.engine == row.engine):
            rounds = range(1, max((number for _, number in rates), default=0) + 1)
            own = {number: rates[row.name, number] for number in rounds if (row.name, number) in rates}
            other = {number: rates[limit.name, number] for number in rounds if (limit.name, number) in rates}
            share = median_ratio(own, other, lambda one, two: one.rate / two.rate)
            if share is not None:
                shares.setdefault(row.engine, {})[limit.title] = share
    return shares


def to_markdown(
    summaries: Sequence[Mapping[str, Any]], shares: Mapping[str, Mapping[str, float]], facts: Sequence[str]
) -> str:
    """The page: facts, the table, the shares of the limits, and what the columns mean."""
    lines = ["# Inference: crackscan and its peers", "", *(f"- {fact}" for fact in facts), ""]
    lines += [_line(COLUMNS), _line(["---", *["---:"] * (len(COLUMNS) - 1)])]
    lines += [_line(_cells(summary)) for summary in summaries]
    failed = [summary for summary in summaries if summary["error"]]
    if failed:
        lines += ["", *(f"- **{summary['title']}** failed: {cell(summary['error'])}" for summary in failed)]
    if shares:
        lines += ["", "The pipeline's rate as a share of its limits (median of the ratios within a round):", ""]
        lines += [
            f"- {engine}: " + ", ".join(f"{share:.2f} of the {title}" for title, share in parts.items())
            for engine, parts in shares.items()
        ]
    return "\n".join([*lines, "", "![images per second](inference.svg)", "", NOTES]) + "\n"


def _cells(summary: Mapping[str, Any]) -> list[str]:
    if "images_per_second" not in summary:
        return [summary["title"], "failed", *[""] * (len(COLUMNS) - 2)]
    return [
        summary["title"],
        f"{summary['images_per_second']:,.0f}",
        f"{summary['lowest']:,.0f} to {summary['highest']:,.0f}",
        _ratio(summary["ours_faster_by"]),
        f"{summary['whole_seconds']:,.1f}",
        _ratio(summary["ours_shorter_by"]),
        f"{summary['peak_process_mb']:,.0f}",
        f"{summary['peak_total_mb']:,.0f}",
        f"{summary['other_class']:,} of {summary['compared']:,}",
        f"{summary['largest_difference']:.1g}",
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} x"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """Text of any origin as a cell of a Markdown table, in one line."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
