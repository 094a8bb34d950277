"""A whole inference job: begin or continue a run, and run its pipeline."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from model.bundle import Bundle, open_bundle
from model.engine import check_engine, choose_engine
from model.errors import InputError, RunError
from model.provenance import package_versions
from pipelines import storage
from pipelines.bundles import local_bundle
from pipelines.finish import check_accounting, make_report
from pipelines.formats import Listing, list_input
from pipelines.inference import InferenceConfig, define_pipeline
from pipelines.preflight import Findings, JobPaths, check_job
from pipelines.progress import run_progress
from pipelines.run import (
    FORMAT_VERSION,
    PLAN,
    REPORT,
    RUN_FILE,
    SUCCESS,
    check_is_run_or_empty,
    committed_units,
    is_finished,
    locked,
    read_run,
    read_totals,
)
from pipelines.runner import make_pipeline, run_pipeline
from pipelines.units import (
    InputConfig,
    Place,
    count_images,
    has_plan,
    listing_digest,
    places,
    plan_digest,
    plan_units,
    write_plan,
)

METRICS_JSON = "metrics.json"
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
        shared_filesystem: local paths name the same files here and on the workers of a cluster.

    Raises:
        InputError: an option has no such value.
    """

    input: InputConfig
    model: str
    out: str
    engine: str = "auto"
    threads: int = 0
    beam_arguments: tuple[str, ...] = ()
    shared_filesystem: bool = False

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise InputError(f"--threads {self.threads}: give 1 or more, or 0 for one per core")
        for option, value in (("--input", self.input.pattern), ("--model", self.model), ("--out", self.out)):
            if not value:
                raise InputError(f"{option} is empty")
        for option, value in (("--model", self.model), ("--out", self.out)):
            if not value.isprintable():
                raise InputError(f"{option} {value!r} has characters that no run can be named by")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a job did.

    Attributes:
        run: the run directory.
        report: the values of its report.
        units: units of the whole run.
        units_before: units that were committed before this job began.
        had_finished: the run was finished before, and nothing was done.
    """

    run: str
    report: dict[str, Any]
    units: int
    units_before: int
    had_finished: bool


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a job would do.

    Attributes:
        run: the run directory.
        model: path of the bundle.
        engine: name of the engine, resolved.
        format: of the input.
        units: units of the whole run.
        units_before: units that are committed already.
        images: images of the whole run; None where only reading them would tell.
        input_bytes: size of the input's files in bytes.
        findings: what the checks for a remote runner found.
        options: Beam's options that differ from their defaults, as they would be sent.
    """

    run: str
    model: str
    engine: str
    format: str
    units: int
    units_before: int
    images: int | None
    input_bytes: int
    findings: Findings
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _CheckedJob:
    run: str
    bundle: Bundle
    engine: str
    listing: Listing
    pipeline: beam.Pipeline
    findings: Findings


def run_inference(job: InferenceJob) -> Outcome:
    """Classify the images of an input; a run that was cut off is continued.

    Raises:
        InputError: the input or the place of the run cannot be used, or a cluster cannot do the job.
        BundleError: the bundle is missing or changed.
        RunError: the run was begun with other settings, or another process is writing it.
    """
    checked = _check(job)
    for warning in checked.findings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    run, bundle, engine = checked.run, checked.bundle, checked.engine
    with locked(run):
        planned = begin_run(run, job.input, checked.listing, bundle, engine)
        before = len(committed_units(run))
        if finished := is_finished(run):
            _check_finished(run, bundle)
        else:
            config = InferenceConfig(
                run, bundle.path, engine, bundle.spec.classes, bundle.spec.fingerprint, job.threads
            )
            _run_pipeline(checked.pipeline, config, planned)
        report = make_report(run)
    return Outcome(job.out, report, len(planned), before, finished)


def plan_inference(job: InferenceJob) -> DryRun:
    """Check a job and tell what it would do, without beginning the run; raises as :func:`run_inference`."""
    checked = _check(job)
    run, listing = checked.run, checked.listing
    if storage.exists(storage.join(run, RUN_FILE)):
        _check_same(run, read_run(run)["settings"], _settings(job.input, listing, checked.bundle, checked.engine))
    units, images = count_images(plan_units(job.input, listing))
    return DryRun(
        run=run,
        model=checked.bundle.path,
        engine=checked.engine,
        format=listing.format,
        units=units,
        units_before=len(committed_units(run)),
        images=images,
        input_bytes=sum(file.size for file in listing.files),
        findings=checked.findings,
        options=checked.pipeline.options.get_all_options(drop_default=True),
    )


def _check(job: InferenceJob) -> _CheckedJob:
    run, model = storage.absolute(job.out), storage.absolute(job.model)
    check_is_run_or_empty(run)
    bundle = open_bundle(local_bundle(model))
    engine = choose_engine(job.engine)
    check_engine(engine, bundle)
    listing = list_input(job.input.pattern, job.input.format, job.input.path_column)
    if _reads_below(job.input.pattern, listing.root, run):
        raise InputError(f"--out {job.out} lies inside the input, which would change by it: give another place")
    pipeline = make_pipeline(list(job.beam_arguments))
    bundle = dataclasses.replace(bundle, path=model)
    paths = JobPaths(listing.root, model, run)
    findings = check_job(pipeline.options, paths, engine, job.shared_filesystem)
    return _CheckedJob(run, bundle, engine, listing, pipeline, findings)


def begin_run(run: str, config: InputConfig, listing: Listing, bundle: Bundle, engine: str) -> list[Place]:
    """Begin a run, or continue it where it was begun with the same settings; gives its plan.

    The plan comes first: what is wrong with an input shows while planning, and then no run is left behind that would
    refuse the corrected command. ``run.json`` vouches for the plan, and is never changed.

    Raises:
        InputError: the input cannot be planned.
        RunError: it was begun with other settings, another model, or other files in the input, or it is damaged.
    """
    settings = _settings(config, listing, bundle, engine)
    plan = storage.join(run, PLAN)
    if storage.exists(storage.join(run, RUN_FILE)):
        values = read_run(run)
        _check_same(run, values["settings"], settings)
        if not has_plan(plan) or plan_digest(plan) != values["plan_digest"]:
            raise RunError(f"{plan} is damaged: give another --out")
        return list(places(plan))
    if committed_units(run):
        raise RunError(f"{run} holds committed units and no {RUN_FILE}: give another --out")
    storage.delete(plan)
    planned = write_plan(plan_units(config, listing), plan)
    values = {
        "format_version": FORMAT_VERSION,
        "settings": settings,
        "input_files": len(listing.files),
        "input_bytes": sum(file.size for file in listing.files),
        "input_skipped": dict(listing.skipped),
        "plan_digest": plan_digest(plan),
        "model": {"path": bundle.path, **dataclasses.asdict(bundle.spec)},
        "versions": package_versions(PACKAGES),
    }
    storage.put(storage.join(run, RUN_FILE), (json.dumps(values, indent=1) + "\n").encode())
    return planned


def _settings(config: InputConfig, listing: Listing, bundle: Bundle, engine: str) -> dict[str, Any]:
    return {
        **dataclasses.asdict(config),
        "pattern": config.pattern if storage.is_remote(config.pattern) else os.path.abspath(config.pattern),
        "format": listing.format,
        "engine": engine,
        "model_fingerprint": bundle.spec.fingerprint,
        "input_digest": listing_digest(config, listing),
    }


def _reads_below(pattern: str, root: str, run: str) -> bool:
    if storage.is_remote(pattern) or storage.is_remote(run):
        return storage.is_remote(pattern) and f"{run}/".startswith(f"{root}/") and "*" not in pattern
    if not (os.path.isdir(pattern) or "**" in pattern):
        return False
    inner, outer = os.path.realpath(run), os.path.realpath(root)
    return os.path.commonpath([inner, outer]) == outer


def _check_finished(run: str, bundle: Bundle) -> None:
    try:
        check_accounting(read_totals(run, bundle.spec.classes), run)
    except RunError as error:
        success = storage.join(run, SUCCESS)
        raise RunError(f"a finished run is damaged ({error}); remove {success} and start again to mend it") from error


def _check_same(run: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [name for name in now if before.get(name) != now[name]]
    # The digest follows from some of the options: it is only news where none of those differs.
    named = [name for name in differing if name != "input_digest"]
    if not differing:
        return
    if named:
        what = "; ".join(
            "it is of another model"
            if name == "model_fingerprint"
            else f"{name} was {before.get(name)}, is {now[name]}"
            for name in named
        )
    else:
        what = "the files of the input have changed since"
    raise RunError(f"{run} holds a run with other settings ({what}): give another --out, or remove the folder")


def _run_pipeline(pipeline: beam.Pipeline, config: InferenceConfig, planned: list[Place]) -> None:
    define_pipeline(pipeline, config)
    started = time.monotonic()
    with run_progress({place.name: place.size for place in planned}, lambda: committed_units(config.run)):
        counters = run_pipeline(pipeline)
    metrics = {"seconds": round(time.monotonic() - started, 2), "counters": counters}
    storage.put(storage.join(config.run, REPORT, METRICS_JSON), (json.dumps(metrics, indent=1) + "\n").encode())
