"""A whole inference job: begin or continue a run, and run its pipeline."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from model.bundle import Bundle, open_bundle
from model.engine import choose_engine
from model.errors import InputError, RunError
from model.provenance import package_versions
from pipelines import storage
from pipelines.finish import REPORT_JSON
from pipelines.formats import Listing, list_input
from pipelines.run import (
    FORMAT_VERSION,
    PLAN,
    REPORT,
    RUN_FILE,
    check_is_run_or_empty,
    committed_units,
    is_finished,
    locked,
    read_run,
)
from pipelines.units import InputConfig, Place, has_plan, listing_digest, places, plan_units, write_plan

PACKAGES = ("crackscan", "apache-beam", "pyarrow", "numpy", "pillow", "ai-edge-litert", "tensorflow")


@dataclasses.dataclass(frozen=True)
class InferenceJob:
    """What to classify, with what, and where the run goes.

    Attributes:
        input: the images.
        model: path of the model bundle.
        out: the run directory.
        engine: one of :data:`model.engine.ENGINES`.
        threads: threads per worker process that decode and predict; 0 for as many as there are cores.
        beam_arguments: command-line arguments for Beam.
    """

    input: InputConfig
    model: str
    out: str
    engine: str = "auto"
    threads: int = 0
    beam_arguments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a job did.

    Attributes:
        run: the run directory.
        report: content of its ``report.json``.
        units: units of the whole run.
        units_before: units that were committed before this job began.
        had_finished: the run was finished before, and nothing was done.
    """

    run: str
    report: dict[str, Any]
    units: int
    units_before: int
    had_finished: bool


def run_inference(job: InferenceJob) -> Outcome:
    """Classify the images of an input; a run that was cut off is continued.

    Raises:
        InputError: the input or the place of the run cannot be used.
        BundleError: the bundle is missing or changed.
        RunError: the run was begun with other settings, or another process is writing it.
    """
    run = job.out if storage.is_remote(job.out) else os.path.abspath(job.out)
    if storage.is_remote(run):
        raise InputError(f"--out {run}: a run is written to a local folder; buckets can only be read in this version")
    check_is_run_or_empty(run)
    bundle = open_bundle(os.path.abspath(job.model))
    engine = choose_engine(job.engine)
    listing = list_input(job.input.pattern, job.input.format, job.input.path_column)
    with locked(run):
        planned = begin_run(run, job.input, listing, bundle, engine)
        before = set(committed_units(run))
        if finished := is_finished(run):
            check_commits(run, planned, before)
        else:
            _run_pipeline(run, bundle, engine, job, planned)
    report = json.loads(storage.read_bytes(storage.join(run, REPORT, REPORT_JSON)))
    return Outcome(job.out, report, len(planned), len(before), finished)


def begin_run(run: str, config: InputConfig, listing: Listing, bundle: Bundle, engine: str) -> list[Place]:
    """Begin a run, or continue it where it was begun with the same settings; gives its plan.

    ``run.json`` comes first and is never changed; the plan follows from it and from the listing that it vouches for,
    so that a process that dies between the two leaves a run that can go on.

    Raises:
        RunError: it was begun with other settings, another model, or other files in the input.
    """
    settings = {
        **dataclasses.asdict(config),
        "pattern": config.pattern if storage.is_remote(config.pattern) else os.path.abspath(config.pattern),
        "format": listing.format,
        "engine": engine,
        "model_fingerprint": bundle.spec.fingerprint,
        "input_digest": listing_digest(config, listing),
    }
    if storage.exists(storage.join(run, RUN_FILE)):
        _check_same(run, read_run(run)["settings"], settings)
    else:
        values = {
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "input_files": len(listing.files),
            "input_bytes": sum(file.size for file in listing.files),
            "model": {"path": bundle.path, **dataclasses.asdict(bundle.spec)},
            "versions": package_versions(PACKAGES),
        }
        storage.put(storage.join(run, RUN_FILE), (json.dumps(values, indent=1) + "\n").encode())
    plan = storage.join(run, PLAN)
    if has_plan(plan):
        return list(places(plan))
    return write_plan(plan_units(config, listing), plan)


def _check_same(run: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [name for name in now if before.get(name) != now[name]]
    # The digest follows from some of the options: it is only news where none of those differs.
    named = [name for name in differing if name != "input_digest"]
    if not differing:
        return
    if named:
        what = "; ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in named)
    else:
        what = "the files of the input have changed since"
    raise RunError(f"{run} was begun with other settings ({what}): give another --out")


def check_commits(run: str, planned: list[Place], committed: set[str]) -> None:
    """Check that a finished run still has all its commit markers.

    Raises:
        RunError: one is gone.
    """
    missing = [place.name for place in planned if place.name not in committed]
    if missing:
        raise RunError(f"{run} is finished but the commit marker of unit {missing[0]} is gone: give another --out")


def _run_pipeline(run: str, bundle: Bundle, engine: str, job: InferenceJob, planned: list[Place]) -> None:
    from pipelines.inference import InferenceConfig, define_pipeline
    from pipelines.progress import run_progress
    from pipelines.runner import make_pipeline, run_pipeline

    pipeline = make_pipeline(list(job.beam_arguments))
    define_pipeline(pipeline, InferenceConfig(run, bundle.path, engine, bundle.spec.classes, job.threads))
    with run_progress({place.name: place.size for place in planned}, lambda: committed_units(run)):
        run_pipeline(pipeline)
