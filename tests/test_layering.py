"""The arrows between the packages, and what must not be imported where."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY, environment, run_job

LAYERS = {"model": {"model"}, "pipelines": {"model", "pipelines"}, "jobs": {"model", "pipelines", "jobs"}}
JOBS = ("prepare", "train", "infer", "report", "query")
LIGHT = (
    *("model.spec", "model.metrics", "model.drift", "model.evaluation", "model.dataset_info", "model.bundle"),
    *("model.engine", "model.litert", "model.preprocess", "model.synthetic", "model.recipes"),
    *("model.calibration", "model.cluster", "model.checkpoint"),
    *("pipelines.records", "pipelines.shards", "pipelines.units", "pipelines.run", "pipelines.report"),
    *("pipelines.query", "pipelines.finish", "pipelines.classification", "pipelines.sinks"),
)
WITH_TENSORFLOW = {
    *("model.network", "model.backbones", "model.augmentation", "model.dataset", "model.export", "model.strategy"),
    *("model.training", "model.training_loop", "model.tensorboard_log"),
}


def modules():
    return [path for layer in LAYERS for path in sorted((REPOSITORY / layer).rglob("*.py"))]


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_a_module_imports_only_from_its_layer_and_below(path):
    layer = path.relative_to(REPOSITORY).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & (set(LAYERS) | {"infra", "benchmarks", "tests"})
    assert ours <= LAYERS[layer]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_tensorflow_is_imported_on_top_only_where_it_is_used_throughout(path):
    name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    heavy = {each.split(".")[0] for each in imported(path, top_level_only=True)} & {"tensorflow", "keras"}
    assert bool(heavy) == (name in WITH_TENSORFLOW)


def test_light_modules_import_neither_tensorflow_nor_beam():
    script = (
        f"import sys, {', '.join(LIGHT)}\n"
        "print([name for name in ('tensorflow', 'keras', 'apache_beam', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment()
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("job", JOBS)
def test_help_answers_in_under_a_second_and_teaches(job):
    started = time.perf_counter()
    shown = run_job(job, "--help").stdout
    assert time.perf_counter() - started < 1.0
    assert f"usage: python -m jobs.{job}" in shown
    assert len(shown.splitlines()) > 8
