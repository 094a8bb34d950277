"""Which Beam runner a job gets, and with which options."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult

from model.errors import CrackscanError, InputError, RunError

IN_PROCESS_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
IN_PROCESS_NAMES = frozenset({"", "directrunner", "fnapirunner", IN_PROCESS_RUNNER.lower()})


def pipeline_options(arguments: list[str]) -> PipelineOptions:
    """Beam's options from command-line arguments, with the in-process runner by default.

    ``DirectRunner`` means the in-process runner too: Beam's own meaning of that name tries Prism first, a binary that
    it downloads.
    """
    options = PipelineOptions(arguments)
    standard = options.view_as(StandardOptions)
    if (standard.runner or "").lower() in IN_PROCESS_NAMES:
        standard.runner = IN_PROCESS_RUNNER
    return options


def is_in_process(options: PipelineOptions) -> bool:
    """Whether a pipeline runs inside this process, on this machine's files."""
    return bool(options.view_as(StandardOptions).runner == IN_PROCESS_RUNNER)


def make_pipeline(arguments: list[str]) -> beam.Pipeline:
    """A pipeline for Beam's command-line arguments; see :func:`pipeline_options`.

    Raises:
        InputError: there is no such runner, or it lacks an option.
    """
    try:
        return beam.Pipeline(options=pipeline_options(arguments))
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"Beam cannot be set up: {error}") from error


def run_pipeline(pipeline: beam.Pipeline) -> dict[str, int]:
    """Run a pipeline to its end and give its counters, by ``namespace/name``.

    Raises:
        KeyboardInterrupt, or what else a signal handler raised: as itself. The in-process runner turns it into a
            RuntimeError, which would look like a fault.
        CrackscanError: as itself, without the step's name that Beam appends.
        RunError: a file could not be read or written.
    """
    with _quiet(is_in_process(pipeline.options)):
        try:
            result = pipeline.run()
            result.wait_until_finish()
            return _counters(result)
        except Exception as error:
            causes = list(_causes(error))
            interruption = next((cause for cause in causes if not isinstance(cause, Exception)), None)
            if interruption is not None:
                raise interruption from None
            ours = next((cause for cause in causes if isinstance(cause, CrackscanError)), None)
            if ours is not None:
                raise type(ours)(_without_step(ours)) from None
            system = next((cause for cause in causes if isinstance(cause, OSError)), None)
            if system is not None:
                raise RunError(f"{_without_step(system)}; mend it, and the same command continues") from None
            raise


@contextlib.contextmanager
def _quiet(in_process: bool) -> Iterator[None]:
    # In this process an exception comes back by itself: Beam's log of it, once per layer, would only bury it.
    logger = logging.getLogger("apache_beam")
    level = logger.level
    if in_process:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _without_step(error: BaseException) -> str:
    return re.sub(r"\s*\[while running '[^']*'\]", "", str(error))


def _counters(result: PipelineResult) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for counter in result.metrics().query(MetricsFilter())["counters"]:
        totals[f"{counter.key.metric.namespace}/{counter.key.metric.name}"] += counter.result or 0
    return dict(sorted(totals.items()))
