"""The RunInference handler whose example is a work unit: a place in the plan in, its tables out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from model.bundle import open_bundle
from model.engine import Engine, open_engine
from model.spec import ModelSpec
from pipelines import storage
from pipelines.bundles import local_bundle
from pipelines.classification import UnitTables, classify
from pipelines.progress import images_done
from pipelines.run import PLAN, read_valid_marker
from pipelines.units import Place, WorkUnit, read_unit, read_unit_images

NAMESPACE = "crackscan"


class UnitResult(NamedTuple):
    """A work unit, what became of its images (None: it is committed already), and the fingerprint of the model."""

    unit: WorkUnit
    tables: UnitTables | None
    model_fingerprint: str


class LoadedModel:
    """An engine and the description of its network; one per worker process, shared by the process' threads.

    RunInference keeps a weak reference to it, which a tuple would not take.
    """

    def __init__(self, engine: Engine, spec: ModelSpec) -> None:
        self.engine = engine
        self.spec = spec


class WorkUnitModelHandler(ModelHandler[Place, UnitResult, LoadedModel]):
    """Reads, decodes and classifies whole work units.

    Rows leave as Arrow tables; pixels and image bytes never leave it. A bad image is a row of the failures, never an
    exception, so that one photo does not fail the others.

    Args:
        run: the run directory, which holds the plan.
        model: path of the model bundle.
        engine: name of the engine, resolved.
        threads: threads that decode and predict; 0 for as many as there are cores.
    """

    def __init__(self, run: str, model: str, engine: str, threads: int = 0) -> None:
        super().__init__()
        self._run = run
        self._model = model
        self._engine = engine
        self._threads = threads

    def load_model(self) -> LoadedModel:
        """Open the bundle; its files' hashes are checked here, once per process."""
        bundle = open_bundle(local_bundle(self._model))
        return LoadedModel(open_engine(self._engine, bundle, self._thread_count()), bundle.spec)

    def run_inference(
        self, batch: Sequence[Place], model: LoadedModel, inference_args: Mapping[str, Any] | None = None
    ) -> Iterator[UnitResult]:
        """Classify each unit of a batch (of one).

        A runner that lost a worker does all of its places again, those too that were committed in the meantime: they
        are passed on unread.
        """
        plan = storage.join(self._run, PLAN)
        for place in batch:
            unit = read_unit(plan, place)
            if read_valid_marker(self._run, unit.name, model.spec.fingerprint):
                Metrics.counter(NAMESPACE, "units_committed_before").inc()
                yield UnitResult(unit, None, model.spec.fingerprint)
                continue
            images = read_unit_images(unit, model.spec.classes)
            tables = classify(images, model.engine, model.spec, self._thread_count(), images_done.add)
            Metrics.counter(NAMESPACE, "images_classified").inc(tables.predictions.num_rows)
            Metrics.counter(NAMESPACE, "images_failed").inc(tables.failures.num_rows)
            Metrics.counter(NAMESPACE, "units_classified").inc()
            yield UnitResult(unit, tables, model.spec.fingerprint)

    def batch_elements_kwargs(self) -> Mapping[str, int]:
        """One unit at a time: a unit is a batch of images in itself, and is committed before the next begins."""
        return {"min_batch_size": 1, "max_batch_size": 1}

    def get_metrics_namespace(self) -> str:
        """The namespace of RunInference's own metrics."""
        return NAMESPACE

    def _thread_count(self) -> int:
        return self._threads or os.cpu_count() or 1
