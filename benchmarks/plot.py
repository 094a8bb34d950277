"""A bar per contender: images per second, with a mark for each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import LIMIT, OURS, PEER
from benchmarks.rounds import Result

COLOURS = {OURS: "#1f6feb", LIMIT: "#c9d1d9", PEER: "#8b949e"}
NAMES = {OURS: "crackscan", LIMIT: "limits: no pipeline around the engine", PEER: "peers"}


def draw(summaries: Sequence[Mapping[str, Any]], results: Sequence[Result], title: str, files: Sequence[Path]) -> None:
    """Draw the contenders that have numbers, fastest on top, into files by their endings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    shown = [summary for summary in summaries if "images_per_second" in summary]
    shown.sort(key=lambda summary: summary["images_per_second"])
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(shown)), layout="constrained")
    places = range(len(shown))
    axes.barh(
        places,
        [summary["images_per_second"] for summary in shown],
        height=0.66,
        color=[COLOURS[summary["kind"]] for summary in shown],
    )
    for place, summary in zip(places, shown, strict=True):
        rates = [result.rate for result in results if result.contender == summary["name"] and not result.error]
        axes.plot(rates, [place] * len(rates), "|", color="#0d1117", markersize=9, markeredgewidth=1.2)
        ratio = summary["ours_faster_by"]
        text = f"  {summary['images_per_second']:,.0f}"
        if ratio is not None and summary["name"] != summaries[0]["name"]:
            text += f"   (ours {ratio:.2f} x)"
        axes.annotate(text, (max(summary["highest"], summary["images_per_second"]), place), va="center", fontsize=9)
    axes.set_yticks(list(places), [summary["title"] for summary in shown])
    axes.margins(x=0.22, y=0.02)
    axes.set_xlabel("images per second of steady work (bar: median; marks: rounds)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    kinds = [kind for kind in COLOURS if any(summary["kind"] == kind for summary in shown)]
    axes.legend(
        [Patch(color=COLOURS[kind]) for kind in kinds],
        [NAMES[kind] for kind in kinds],
        loc="lower right",
        frameon=False,
    )
    for file in files:
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
