"""The inference pipeline: PlanUnits | Classify | Commit | Finish."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference

from pipelines import storage
from pipelines.finish import finish_run
from pipelines.handler import UnitResult, WorkUnitModelHandler
from pipelines.run import PLAN, Totals, committed_units, read_marker, read_valid_marker
from pipelines.sinks import commit
from pipelines.units import Place, places

COMMITTED = "committed"
PENDING = "pending"


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """What the pipeline works on: a run that :func:`pipelines.inference_job.open_run` has begun.

    Attributes:
        run: the run directory.
        model: path of the model bundle.
        engine: name of the engine, resolved.
        classes: the model's class names.
        model_fingerprint: the model's fingerprint.
        threads: threads per worker process that decode and predict; 0 for as many as there are cores.
    """

    run: str
    model: str
    engine: str
    classes: tuple[str, ...]
    model_fingerprint: str
    threads: int = 0


def define_pipeline(root: beam.Pipeline, config: InferenceConfig) -> None:
    """Wire the pipeline that classifies the units of a run that are not committed yet, and finishes the run."""
    planned = root | PlanUnits(config)
    classified = planned[PENDING] | Classify(config) | Commit(config.run)
    (planned[COMMITTED], classified) | Finish(config)


@dataclasses.dataclass
class PlanUnits(beam.PTransform):
    """Read the plan: places of pending units, and the totals of those that an earlier attempt committed."""

    config: InferenceConfig

    def expand(self, root: beam.Pipeline) -> beam.DoOutputsTuple:
        split = SplitCommitted(self.config.run, self.config.model_fingerprint)
        return (
            root
            | "Run" >> beam.Create([self.config.run])
            | "ReadPlan" >> beam.FlatMap(read_places)
            | "SkipCommitted" >> beam.ParDo(split).with_outputs(COMMITTED, PENDING)
        )


@dataclasses.dataclass
class Classify(beam.PTransform):
    """Classify units by RunInference; one unit is one element."""

    config: InferenceConfig

    def expand(self, pending: beam.PCollection[Place]) -> beam.PCollection[UnitResult]:
        config = self.config
        handler = WorkUnitModelHandler(config.run, config.model, config.engine, config.threads)
        # Without the reshuffle the whole plan would be one bundle on one worker: it comes from one element.
        return pending | "SpreadUnits" >> beam.Reshuffle() | "RunInference" >> RunInference(handler)


@dataclasses.dataclass
class Commit(beam.PTransform):
    """Write the parts and the marker of each unit; fused with Classify, so that no table is ever shuffled."""

    run: str

    def expand(self, results: beam.PCollection[UnitResult]) -> beam.PCollection[Totals]:
        return results | "Commit" >> beam.Map(commit_result, self.run)


@dataclasses.dataclass
class Finish(beam.PTransform):
    """Behind all commits: merge the totals, check the accounting, write the report and ``_SUCCESS``."""

    config: InferenceConfig

    def expand(self, totals: tuple[beam.PCollection[Totals], beam.PCollection[Totals]]) -> beam.PCollection[str]:
        zero = Totals.zero(self.config.classes)
        return (
            totals
            | "Totals" >> beam.Flatten()
            | "MergeTotals" >> beam.CombineGlobally(functools.partial(merge_totals, zero))
            | "FinishRun" >> beam.Map(finish_run, self.config.run)
        )


class SplitCommitted(beam.DoFn):
    """Tell committed units, as their totals, from pending ones, as their places."""

    def __init__(self, run: str, model_fingerprint: str) -> None:
        self._run = run
        self._model_fingerprint = model_fingerprint
        self._committed: frozenset[str] = frozenset()

    def start_bundle(self) -> None:
        # One listing, where asking for each marker would cost a bucket two requests per unit.
        self._committed = frozenset(committed_units(self._run))

    def process(self, place: Place) -> Iterator[beam.pvalue.TaggedOutput]:
        found = place.name in self._committed
        marker = read_valid_marker(self._run, place.name, self._model_fingerprint) if found else None
        if marker:
            yield beam.pvalue.TaggedOutput(COMMITTED, Totals.of(marker))
        else:
            yield beam.pvalue.TaggedOutput(PENDING, place)


def read_places(run: str) -> Iterator[Place]:
    """The places of a run's plan."""
    return places(storage.join(run, PLAN))


def commit_result(result: UnitResult, run: str) -> Totals:
    """Commit a unit where it is not committed already, and give its totals."""
    unit, tables, model_fingerprint = result
    return Totals.of(commit(run, unit, tables, model_fingerprint) if tables else read_marker(run, unit.name))


def merge_totals(zero: Totals, totals: Iterable[Totals]) -> Totals:
    """The sum of some totals; ``zero`` for none."""
    return functools.reduce(operator.add, totals, zero)
