"""Classify images in batches and write a run directory of Parquet tables and a report."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from jobs.command import DONE, TOO_MANY_FAILURES, run_command, split_beam_arguments

if TYPE_CHECKING:
    from pipelines.inference_job import DryRun

DEFAULT_MODEL = "workspace/bundle"

DESCRIPTION = """\
Classify images with a model bundle, by an Apache Beam pipeline, and write a run directory: Parquet tables of
predictions and failures, one part per work unit, and a report. A run that was cut off goes on where it stopped when
the same command is given again; a finished one is left as it is.

An input is a folder of images, TFRecord files, WebDataset tars, Parquet files with an image column, or a CSV or JSONL
manifest of paths: one file, a folder, or a quoted glob pattern.
"""

EXAMPLES = """\
examples:
  python -m jobs.infer                                  the test split of workspace/data with workspace/bundle
  python -m jobs.infer --input photos/ --out runs/photos
                                                        photos, with the model that comes along if none is trained
  python -m jobs.infer --input photos/ --labels from-folder --out runs/photos
  python -m jobs.infer --input 'shards/*.tar' --threads 8
  python -m jobs.infer --input list.csv --labels column:defect
  python -m jobs.infer --input photos/ --dry-run        only check, and print the plan

Arguments that are none of the above go to Beam, such as --runner (in-process by default).
exit codes: 0 done; 2 the input, the model or the run is refused; 3 done with more failures than --max-failures, or
with a shard that could not be read to its end; 130 and 143 interrupted, the same command continues
"""


def parser() -> argparse.ArgumentParser:
    """The command's own options."""
    options = argparse.ArgumentParser(
        "python -m jobs.infer",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--input", default="workspace/data/test", metavar="PATTERN", help="the images (%(default)s)")
    options.add_argument(
        "--model",
        metavar="BUNDLE",
        help="a bundle of jobs.train (workspace/bundle; where there is none, the concrete-crack model of the package)",
    )
    options.add_argument("--out", default="workspace/run", metavar="RUN", help="the run directory (%(default)s)")
    options.add_argument(
        "--format",
        default="auto",
        choices=("auto", "folder", "tfrecord", "tar", "parquet", "manifest"),
        help="of the input, where it is not to be found by content and name",
    )
    options.add_argument(
        "--labels",
        default="auto",
        metavar="auto|from-folder|column:NAME|none",
        help="where labels come from: the records themselves, the name of an image's folder, a column, nowhere",
    )
    options.add_argument("--image-column", metavar="NAME", help="of Parquet files (found by itself)")
    options.add_argument("--path-column", metavar="NAME", help="of manifests (found by itself)")
    options.add_argument(
        "--images-per-unit",
        type=int,
        default=1000,
        metavar="N",
        help="files or rows per work unit, of folders, manifests and Parquet files (%(default)s)",
    )
    options.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "litert", "litert-int8", "savedmodel"),
        help="what runs the network: litert is fast on CPUs, litert-int8 faster and a little less exact, savedmodel "
        "needs TensorFlow and runs on GPUs",
    )
    options.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads that decode and predict (one per core)"
    )
    options.add_argument(
        "--max-failures",
        type=int,
        metavar="N",
        help="exit with 3 where more images and shards failed than this (any number of images, no shard)",
    )
    options.add_argument(
        "--shared-filesystem",
        action="store_true",
        help="local paths name the same files on every worker of a cluster",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be done, and do nothing"
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options, beam_arguments = split_beam_arguments(parser(), arguments)
    from model.errors import InputError
    from pipelines.inference_job import InferenceJob, plan_inference, run_inference
    from pipelines.units import InputConfig

    if options.max_failures is not None and options.max_failures < 0:
        raise InputError(f"--max-failures {options.max_failures}: give 0 or more")
    job = InferenceJob(
        input=InputConfig(
            pattern=options.input,
            format=options.format,
            labels=options.labels,
            image_column=options.image_column,
            path_column=options.path_column,
            images_per_unit=options.images_per_unit,
        ),
        model=options.model or default_model(),
        out=options.out,
        engine=options.engine,
        threads=options.threads,
        beam_arguments=tuple(beam_arguments),
        shared_filesystem=options.shared_filesystem,
    )
    if options.dry_run:
        print_dry_run(plan_inference(job))
        return DONE
    outcome = run_inference(job)
    if outcome.had_finished:
        print(f"{options.out} is finished already: {outcome.units:,} units, nothing to do", file=sys.stderr)
    elif outcome.units_before:
        print(f"{outcome.units_before:,} of {outcome.units:,} units were committed before: skipped", file=sys.stderr)
    print_summary(options.out, outcome.report)
    return exit_code(outcome.report, options.max_failures)


def default_model() -> str:
    """The bundle in its default place, or the one that comes with the package."""
    from model.bundle import MODEL_FILE, PRETRAINED

    if os.path.exists(os.path.join(DEFAULT_MODEL, MODEL_FILE)):
        return DEFAULT_MODEL
    print(f"no bundle in {DEFAULT_MODEL}: using the concrete-crack model that comes with crackscan", file=sys.stderr)
    return PRETRAINED


def print_dry_run(plan: DryRun) -> None:
    """Print what a job would do, one thing a line."""
    images = "known when they are read" if plan.images is None else f"{plan.images:,}"
    rows = {
        "input": plan.format,
        "units": f"{plan.units:,}",
        "images": images,
        "bytes": f"{plan.input_bytes:,}",
        "committed": f"{plan.units_before:,} units" + (", nothing to do" if plan.units_before == plan.units else ""),
        "model": plan.model,
        "engine": plan.engine,
        "run": plan.run,
        **plan.findings.facts,
        "options": " ".join(f"--{name}={value}" for name, value in sorted(plan.options.items())),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    for warning in plan.findings.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_summary(run: str, report: dict[str, Any]) -> None:
    """Print the run in a few lines, the next command in the last."""
    from pipelines.report_page import summary, warnings

    for line in [*summary(report), *warnings(report)]:
        print(line)
    if report["predictions"]:
        found = ", ".join(f"{name} {count:,}" for name, count in report["metrics"]["predicted"].items())
        print(f"predicted: {found}")
    if report["failures"]:
        codes = ", ".join(f"{code} {count:,}" for code, count in report["failure_codes"].items())
        print(f'failed: {codes}; which: python -m jobs.query {run} "SELECT image_id, code, message FROM failures"')
    skipped = report["run"].get("input_skipped")
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.items())
        print(f"skipped, of no format that is read: {kinds}")
    for unit in report["unit_failures"]:
        print(f"  {unit['source']}: {unit['message']}")
    print(f"report: {run}/report/report.html")
    print(f"next: python -m jobs.report {run}, or python -m jobs.query {run}")


def exit_code(report: dict[str, Any], max_failures: int | None) -> int:
    """0, or 3 where more failed than is allowed; without a limit, where a shard failed or no image came through."""
    shards, images = len(report["unit_failures"]), report["failures"]
    if max_failures is not None:
        return TOO_MANY_FAILURES if shards + images > max_failures else DONE
    return TOO_MANY_FAILURES if shards or (images and not report["predictions"]) else DONE


if __name__ == "__main__":
    raise SystemExit(run_command(main, continues=True))
