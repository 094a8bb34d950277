"""A whole training, from prepared data to a model bundle."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.bundle import LITERT_INT8_FILE, REFERENCE_FILE, TRAINING_FOLDER, Bundle, BundleWriter, sha256_of_file
from model.calibration import ThresholdTarget
from model.checkpoint import Checkpoint
from model.cluster import read_task
from model.dataset_info import DatasetInfo, read_dataset
from model.errors import InputError
from model.metrics import compute
from model.native_log import quiet_native_log
from model.provenance import git_commit, package_versions
from model.spec import TrainConfig, choose_positive_class, fingerprint

PACKAGES = ("crackscan", "tensorflow", "keras", "numpy", "pillow", "ai-edge-litert")
STORED_METRICS = ("accuracy", "accuracy_interval", "precision", "recall", "f1", "roc_auc", "ece", "confusion_matrix")
CALIBRATION_IMAGES = 100
"""Training images that the int8 network's ranges are measured on."""
F1 = ThresholdTarget("f1")
SAMPLE_IMAGES = 256
"""Training images that pictures and calibration are made of."""


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and where the bundle goes.

    Attributes:
        data: folder of prepared data.
        out: the bundle's place.
        config: the recipe.
        weights: ``imagenet``, ``none``, the path of a file, or None for the recipe's own.
        strategy: ``default``, ``mirrored`` or ``multiworker``.
        virtual_devices: logical devices to split the CPU into, 0 for none.
        positive_class: the class that precision and recall speak of, or None to find it by name.
        threshold_for: what the decision threshold is chosen for, with two classes.
        mixed_precision: compute in 16 bits.
        deterministic: equal trainings give equal weights, at some speed.
        resume: go on with an interrupted training of the same kind; begin where there is none.
        overwrite: replace a bundle that is there already, and an interrupted training.
    """

    data: str
    out: str
    config: TrainConfig
    weights: str | None = None
    strategy: str = "default"
    virtual_devices: int = 0
    positive_class: str | None = None
    threshold_for: ThresholdTarget = F1
    mixed_precision: bool = False
    deterministic: bool = False
    resume: bool = False
    overwrite: bool = False


def run_training(job: TrainingJob) -> Bundle | None:
    """Train and write the bundle; None where another worker writes it.

    Raises:
        InputError: the data, the weights, or the place of the bundle cannot be used, or an interrupted training is
            there and neither ``resume`` nor ``overwrite`` says what to do with it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("training needs TensorFlow: pip install -c constraints.txt '.[train]'")
    info = read_dataset(job.data)
    positive_class = choose_positive_class(info.classes, job.positive_class)
    if job.strategy == "multiworker" and not read_task().is_chief:
        _assist(job, info, positive_class)
        return None
    writer = BundleWriter(job.out, job.overwrite)
    try:
        return _write(job, info, positive_class, writer)
    except BaseException:
        writer.discard()
        raise


def _assist(job: TrainingJob, info: DatasetInfo, positive_class: str) -> None:
    """Train beside the chief, which alone writes checkpoints and the bundle."""
    strategy = _start(job)
    from model.strategy import wait_for_all
    from model.training import train

    path = _checkpoint_path(job)
    checkpoint = Checkpoint(path, _identity(job, info), writes=False) if job.resume else None
    with tempfile.TemporaryDirectory(prefix="crackscan-") as logs:
        train(job.config, info, _options(job, positive_class), strategy, Path(logs), checkpoint)
    wait_for_all(strategy)


def _start(job: TrainingJob) -> Any:
    with quiet_native_log():
        import tensorflow as tf

        from model.strategy import make_strategy, start_devices

        strategy = make_strategy(job.strategy, job.virtual_devices)
        start_devices()
    # Small data sets make TensorFlow warn of retracing, which costs nothing there.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if job.deterministic:
        tf.config.experimental.enable_op_determinism()
    return strategy


def _write(job: TrainingJob, info: DatasetInfo, positive_class: str, writer: BundleWriter) -> Bundle:
    started = time.monotonic()
    checkpoint = Checkpoint(_checkpoint_path(job), _identity(job, info))
    if checkpoint.path.exists() and not job.resume:
        if not job.overwrite:
            raise InputError(f"{checkpoint.path} is of an interrupted training: go on with --resume, or remove it")
        checkpoint.remove()
    strategy = _start(job)
    from model.export import export_model
    from model.strategy import wait_for_all
    from model.training import train
    from model.training_progress import ConsoleReporter

    config, training = job.config, writer.folder / TRAINING_FOLDER
    replicas = strategy.num_replicas_in_sync
    with ConsoleReporter() as reporter:
        reporter.stage(
            f"recipe {config.recipe}: {config.backbone} at {config.image_size} x {config.image_size}, "
            f"{replicas} replica{'s' if replicas > 1 else ''}, global batch {config.batch_size * replicas}"
        )
        warning = split_warning(config, info)
        if warning:
            reporter.stage(warning)
        options = _options(job, positive_class)
        try:
            trained = train(config, info, options, strategy, training / "tensorboard", checkpoint, reporter)
        except KeyboardInterrupt:
            if checkpoint.path.exists():
                reporter.stage("the finished epochs are kept: the same command with --resume goes on behind them")
            raise
        reporter.stage("writing the bundle")
        export_model(trained.serving, writer.folder)
        metrics = _write_record(job, info, trained, writer.folder, reporter)
    bundle = writer.finish(
        trained.spec,
        {
            "metrics": metrics,
            "calibration": {
                "temperature": trained.temperature,
                "ece": {
                    name: {
                        "before": compute(trained.uncalibrated[name].counts, positive_class)["ece"],
                        "after": metrics[name]["ece"],
                    }
                    for name in ("validation", "test")
                },
            },
            "threshold_for": str(job.threshold_for) if len(info.classes) == 2 else None,
            "training": dataclasses.asdict(config)
            | {
                "weights": Path(_weights(job) or "none").name,
                "strategy": job.strategy,
                "replicas": replicas,
                "mixed_precision": job.mixed_precision,
                "seconds": round(time.monotonic() - started + trained.resumed_seconds, 1),
            },
            "data": {"source": info.source, "split": info.split, "counts": info.counts},
            "versions": package_versions(PACKAGES),
            "git_commit": git_commit(),
        },
    )
    checkpoint.remove()
    wait_for_all(strategy)
    return bundle


def _write_record(job: TrainingJob, info: DatasetInfo, trained: Any, folder: Path, reporter: Any) -> dict[str, Any]:
    """The int8 network, the reference and the pictures; returns what ``model.json`` says of the evaluations."""
    from model.dataset import load_split, sample_split
    from model.export import convert_to_litert_int8
    from model.features import predict_by_litert
    from model.training import evaluate
    from model.training_record import record_training

    size, spec = job.config.image_size, trained.spec
    sample = sample_split(info, "train", size, SAMPLE_IMAGES)
    test = load_split(info, "test", size)
    reporter.stage("quantising to int8")
    with quiet_native_log():
        int8 = convert_to_litert_int8(trained.serving, sample.pixels[:CALIBRATION_IMAGES])
    (folder / LITERT_INT8_FILE).write_bytes(int8)
    evaluations = {
        "before": trained.before,
        "validation": trained.validation,
        "test": trained.test,
        "test_int8": evaluate(spec, test.labels, predict_by_litert(int8, test)),
    }
    metrics = {}
    for name, evaluation in evaluations.items():
        values = compute(evaluation.counts, spec.positive_class)
        metrics[name] = {
            "images": values["labelled"],
            "loss": evaluation.loss,
            **{key: values[key] for key in STORED_METRICS},
        }
    counts = [info.counts["train"][name] for name in info.classes]
    (folder / REFERENCE_FILE).write_text(json.dumps(trained.reference, indent=1) + "\n")
    if not record_training(folder / TRAINING_FOLDER, job.config, trained, sample, counts, test, metrics):
        reporter.stage("no picture of the architecture: it takes Graphviz (apt-get install graphviz)")
    return metrics


def _options(job: TrainingJob, positive_class: str) -> Any:
    from model.training import TrainingOptions

    return TrainingOptions(_weights(job), positive_class, job.threshold_for, job.mixed_precision)


def _checkpoint_path(job: TrainingJob) -> Path:
    out = Path(os.path.abspath(job.out))
    return out.with_name(f"{out.name}.checkpoint.npz")


def _identity(job: TrainingJob, info: DatasetInfo) -> str:
    weights = _weights(job)
    return fingerprint(
        {
            "config": dataclasses.asdict(job.config),
            "data": info.fingerprint,
            "weights": sha256_of_file(weights) if weights and Path(weights).is_file() else weights,
            "strategy": [job.strategy, job.virtual_devices, job.mixed_precision],
        }
    )


def _weights(job: TrainingJob) -> str | None:
    if job.weights is None:
        return None if job.config.from_scratch else "imagenet"
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
    calibration = bundle.values["calibration"]["ece"]["validation"]
    lines.append(
        f"  calibrated on validation: ECE {calibration['before']:.4f} before, {calibration['after']:.4f} after; "
        f"decision threshold {bundle.spec.threshold:.4g}"
    )
    lines.append(f"  int8: test accuracy {metrics['test_int8']['accuracy']:.4f}")
    lines.append(f"  trained in {bundle.values['training']['seconds']:.0f} s; f1 is of {bundle.spec.positive_class!r}")
    return "\n".join(lines)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
