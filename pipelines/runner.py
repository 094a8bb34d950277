"""Which Beam runner a job gets, and with which options."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

IN_PROCESS_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
IN_PROCESS_NAMES = frozenset({None, "DirectRunner", "FnApiRunner", IN_PROCESS_RUNNER})


def pipeline_options(arguments: list[str]) -> PipelineOptions:
    """Beam's options from command-line arguments, with the in-process runner by default.

    ``DirectRunner`` means the in-process runner too: Beam's own meaning of that name tries Prism first, a binary that
    it downloads.
    """
    options = PipelineOptions(arguments)
    standard = options.view_as(StandardOptions)
    if standard.runner in IN_PROCESS_NAMES:
        standard.runner = IN_PROCESS_RUNNER
    return options


def is_in_process(options: PipelineOptions) -> bool:
    """Whether a pipeline runs inside this process, on this machine's files."""
    return bool(options.view_as(StandardOptions).runner == IN_PROCESS_RUNNER)


def make_pipeline(arguments: list[str]) -> beam.Pipeline:
    """A pipeline for Beam's command-line arguments; see :func:`pipeline_options`."""
    return beam.Pipeline(options=pipeline_options(arguments))


def run_pipeline(pipeline: beam.Pipeline) -> None:
    """Run a pipeline to its end.

    Raises:
        KeyboardInterrupt, or what else a signal handler raised: as itself. The in-process runner turns it into a
            RuntimeError, which would look like a fault.
    """
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        cause: BaseException | None = error
        while isinstance(cause, Exception):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise
