"""The end of a run: the accounting is checked, the report and ``_SUCCESS`` are written."""

from __future__ import annotations

import heapq
import io
import json
from typing import Any

import pyarrow.parquet as pq

from model.errors import RunError
from model.spec import ModelSpec
from pipelines import storage
from pipelines.report import ReportSource, Thumbnail, build_report, render_html
from pipelines.run import (
    PLAN,
    REPORT,
    SUCCESS,
    TABLES,
    TEMPORARY,
    THUMBNAILS,
    Totals,
    committed_units,
    part_path,
    read_run,
    read_totals,
)
from pipelines.units import places

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
THUMBNAILS_SHOWN = 48


def finish_run(totals: Totals, run: str) -> str:
    """Check the accounting of a run whose units are all committed, write its report and ``_SUCCESS``.

    Args:
        totals: the sums over all its units.
        run: the run directory.

    Returns:
        The run directory.

    Raises:
        RunError: the accounting does not hold.
    """
    check_accounting(totals, run)
    write_report(run, make_report(run, totals))
    storage.delete(storage.join(run, TEMPORARY))
    content = {"units": totals.units, "images": totals.images, "failures": totals.failures}
    storage.put(storage.join(run, SUCCESS), json.dumps(content).encode())
    return run


def check_accounting(totals: Totals, run: str) -> None:
    """Check that every planned unit is committed once, every image is in one table, and no part is without a marker.

    Raises:
        RunError: it is not so.
    """
    planned = {place.name for place in places(storage.join(run, PLAN))}
    committed = set(committed_units(run))
    if committed != planned or totals.units != len(planned):
        raise RunError(
            f"{run}: {len(planned):,} units are planned, {len(committed):,} committed, {totals.units:,} counted; "
            "start the run again"
        )
    if totals.predictions + totals.failures != totals.images or totals.counts.rows != totals.predictions:
        raise RunError(
            f"{run}: {totals.predictions:,} predictions and {totals.failures:,} failures do not account for "
            f"{totals.images:,} images"
        )
    parts = 0
    for table in TABLES:
        names = storage.list_names(storage.join(run, table))
        orphans = [name for name in names if name.removesuffix(".parquet") not in committed]
        if orphans:
            raise RunError(f"{run}/{table} holds {orphans[0]}, which no unit of this run has written: remove it")
        parts += len(names)
    if parts != totals.parts:
        raise RunError(f"{run} holds {parts:,} parts where its units have written {totals.parts:,}: one is gone")


def make_report(run: str, totals: Totals | None = None) -> dict[str, Any]:
    """The values of ``report.json`` of the units committed by now.

    Args:
        run: the run directory.
        totals: the sums over its units; merged from the markers by default.

    Raises:
        RunError: there is no run, or a marker is damaged.
    """
    values = read_run(run)
    spec = ModelSpec.from_json(values["model"])
    totals = totals or read_totals(run, spec.classes)
    return build_report(
        ReportSource(
            run=values,
            classes=spec.classes,
            positive_class=spec.positive_class,
            counts=totals.counts,
            images=totals.images,
            predictions=totals.predictions,
            failures=totals.failures,
            failure_codes=totals.failure_codes,
            units=totals.units,
            unit_failures=totals.shard_errors,
            seconds=totals.seconds,
        )
    )


def write_report(run: str, report: dict[str, Any]) -> None:
    """Write ``report.json`` and ``report.html``.

    Args:
        run: the run directory.
        report: from :func:`make_report`.

    Raises:
        RunError: a part is damaged.
        OSError: they cannot be written.
    """
    page = render_html(report, read_thumbnails(run, report["metrics"]["labelled"] > 0))
    storage.put(storage.join(run, REPORT, REPORT_JSON), (json.dumps(report, indent=1) + "\n").encode())
    storage.put(storage.join(run, REPORT, REPORT_HTML), page.encode())


def read_thumbnails(run: str, labelled: bool) -> list[Thumbnail]:
    """The images that the report shows: the most confident mistakes, or the least certain where nothing is labelled.

    Raises:
        RunError: a part is damaged.
    """
    chosen: list[Thumbnail] = []
    for unit in committed_units(run):
        path = storage.join(run, part_path(THUMBNAILS, unit))
        try:
            rows = pq.read_table(io.BytesIO(storage.read_bytes(path))).to_pylist()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        found = [Thumbnail(**row) for row in rows if (row["label"] is not None) == labelled]
        # Kept small on the way, so that a run of a million units needs no more memory here than one of ten.
        chosen = heapq.nsmallest(
            THUMBNAILS_SHOWN, chosen + found, key=lambda image: -image.score if labelled else image.score
        )
    return chosen
