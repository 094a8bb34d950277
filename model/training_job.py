"""A whole training, from prepared data to a model bundle."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.bundle import REFERENCE_FILE, TRAINING_FOLDER, Bundle, BundleWriter
from model.dataset_info import DatasetInfo, read_dataset
from model.errors import InputError
from model.evaluation import classification_report, confusion_matrix_figure
from model.metrics import compute
from model.native_log import quiet_native_log
from model.provenance import git_commit, package_versions
from model.spec import TrainConfig, choose_positive_class

PACKAGES = ("crackscan", "tensorflow", "keras", "numpy", "pillow", "ai-edge-litert")
STORED_METRICS = ("accuracy", "accuracy_interval", "precision", "recall", "f1", "roc_auc", "ece", "confusion_matrix")


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and where the bundle goes.

    Attributes:
        data: folder of prepared data.
        out: the bundle's place.
        config: the recipe.
        weights: ``imagenet``, ``none``, the path of a file, or None for the recipe's own.
        strategy: ``default`` or ``mirrored``.
        virtual_devices: logical devices to split the CPU into, 0 for none.
        positive_class: the class that precision and recall speak of, or None to find it by name.
        overwrite: replace a bundle that is there already.
    """

    data: str
    out: str
    config: TrainConfig
    weights: str | None = None
    strategy: str = "default"
    virtual_devices: int = 0
    positive_class: str | None = None
    overwrite: bool = False


def run_training(job: TrainingJob) -> Bundle:
    """Train and write the bundle.

    Raises:
        InputError: the data, the weights, or the place of the bundle cannot be used.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("training needs TensorFlow: pip install -c constraints.txt '.[train]'")
    info = read_dataset(job.data)
    positive_class = choose_positive_class(info.classes, job.positive_class)
    writer = BundleWriter(job.out, job.overwrite)
    try:
        return _run(job, info, positive_class, writer)
    except BaseException:
        writer.discard()
        raise


def _run(job: TrainingJob, info: DatasetInfo, positive_class: str, writer: BundleWriter) -> Bundle:
    started = time.monotonic()
    with quiet_native_log():
        from model.export import export_model
        from model.strategy import make_strategy, start_devices
        from model.training import train
        from model.training_progress import ConsoleReporter

        strategy = make_strategy(job.strategy, job.virtual_devices)
        start_devices()
    # Small data sets make TensorFlow warn of retracing, which costs nothing there.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    training = writer.folder / TRAINING_FOLDER
    with ConsoleReporter(job.config) as reporter:
        replicas = strategy.num_replicas_in_sync
        reporter.stage(
            f"recipe {job.config.recipe}: {job.config.backbone} at {job.config.image_size} x {job.config.image_size}, "
            f"{replicas} replica{'s' if replicas > 1 else ''}, global batch {job.config.batch_size * replicas}"
        )
        warning = split_warning(job.config, info)
        if warning:
            reporter.stage(warning)
        trained = train(job.config, info, _weights(job), strategy, positive_class, training / "tensorboard", reporter)
        reporter.stage("writing the bundle")
        export_model(trained.serving, writer.folder)
    metrics = {}
    for name, evaluation in (
        ("before", trained.before),
        ("validation", trained.validation),
        ("test", trained.test),
    ):
        values = compute(evaluation.counts, positive_class)
        metrics[name] = {
            "images": values["labelled"],
            "loss": evaluation.loss,
            **{key: values[key] for key in STORED_METRICS},
        }
    _write_json(writer.folder / REFERENCE_FILE, trained.reference)
    _write_json(training / "history.json", trained.history)
    _write_json(training / "evaluation.json", metrics)
    (training / "classification_report.txt").write_text(classification_report(trained.test.counts, positive_class))
    confusion_matrix_figure(trained.test.counts).savefig(training / "confusion_matrix.png", dpi=120)
    return writer.finish(
        trained.spec,
        {
            "metrics": metrics,
            "training": dataclasses.asdict(job.config)
            | {
                "weights": Path(_weights(job) or "none").name,
                "strategy": job.strategy,
                "replicas": strategy.num_replicas_in_sync,
                "seconds": round(time.monotonic() - started, 1),
            },
            "data": {"source": info.source, "split": info.split, "counts": info.counts},
            "versions": package_versions(PACKAGES),
            "git_commit": git_commit(),
        },
    )


def _weights(job: TrainingJob) -> str | None:
    if job.weights is None:
        return "imagenet" if job.config.frozen else None
    return None if job.weights == "none" else job.weights


def split_warning(config: TrainConfig, info: DatasetInfo) -> str | None:
    """A line on a recipe that was made for another split than the data's, or None."""
    wanted = [part / sum(config.split) for part in config.split]
    if all(abs(a - b) < 1e-6 for a, b in zip(wanted, info.split, strict=True)):
        return None
    shown = ["/".join(f"{100 * part:g}" for part in parts) for parts in (wanted, info.split)]
    return f"warning: recipe {config.recipe} was published with the split {shown[0]}, the data has {shown[1]}"


def describe_bundle(bundle: Bundle) -> str:
    """A few lines for a person on what a bundle is worth."""
    metrics = bundle.values["metrics"]
    relative = os.path.relpath(bundle.path)
    shown = bundle.path if relative.startswith("..") else relative
    lines = [f"bundle {shown}: {bundle.spec.backbone}, classes {', '.join(bundle.spec.classes)}"]
    for name in ("before", "validation", "test"):
        values = metrics[name]
        title = {"before": "before training (validation)"}.get(name, name)
        lines.append(
            f"  {title:<28} accuracy {values['accuracy']:.4f}  f1 {values['f1']:.4f}  loss {values['loss']:.4f}"
            f"  ({values['images']:,} images)"
        )
    lines.append(f"  trained in {bundle.values['training']['seconds']:.0f} s; f1 is of {bundle.spec.positive_class!r}")
    return "\n".join(lines)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
