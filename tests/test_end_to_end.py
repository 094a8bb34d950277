"""The commands in a row as a user types them, on synthetic images, and what a SIGKILL in the middle leaves."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import command, environment, run_job, table_digests, write_image_folder

from pipelines.run import locked


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory):
    """The whole path with the default places and three classes."""
    place = tmp_path_factory.mktemp("three classes é")
    outputs = {"prepare": run_job("prepare", "--source", "synthetic:600:3", "--shards", "3", cwd=place).stdout}
    outputs["train"] = run_job("train", "--recipe", "small", "--positive-class", "crack", cwd=place).stdout
    outputs["infer"] = run_job("infer", cwd=place).stdout
    outputs["report"] = run_job("report", cwd=place).stdout
    outputs["query"] = run_job("query", cwd=place).stdout
    return place, outputs


def test_three_classes_work_as_well_as_two(three_classes):
    place, outputs = three_classes
    report = json.loads((place / "workspace/run/report/report.json").read_bytes())
    assert report["metrics"]["accuracy"] > 0.85
    assert list(report["metrics"]["per_class"]) == ["crack", "no crack", "spalling"]
    assert min(row["f1"] for row in report["metrics"]["per_class"].values()) > 0.75
    assert report["images"] == report["predictions"]
    for name in ("crack", "no crack", "spalling", "macro avg", "Confusion matrix"):
        assert name in outputs["report"]


def test_each_command_ends_by_naming_the_next(three_classes):
    _, outputs = three_classes
    for before, after in (("prepare", "train"), ("train", "infer"), ("infer", "report")):
        assert outputs[before].splitlines()[-1].startswith(f"next: python -m jobs.{after}")


def test_the_bundle_says_what_it_is_and_the_run_agrees(three_classes):
    place, _ = three_classes
    model = json.loads((place / "workspace/bundle/model.json").read_bytes())
    report = json.loads((place / "workspace/run/report/report.json").read_bytes())
    assert model["classes"] == ["crack", "no crack", "spalling"]
    assert model["positive_class"] == "crack"
    assert model["metrics"]["test"]["confusion_matrix"] == report["metrics"]["confusion_matrix"]
    assert {"accuracy", "f1", "loss"} <= set(model["metrics"]["before"])
    assert model["versions"]["tensorflow"]
    assert set(model["files"]) >= {"saved_model.pb", "model.tflite", "model.keras", "reference.json"}
    assert (place / "workspace/bundle/training/classification_report.txt").read_text() in _report(place)
    assert list((place / "workspace/bundle/training/tensorboard/train").glob("events.*"))


def _report(place: Path) -> str:
    return run_job("report", cwd=place).stdout


def test_the_example_queries_run_as_they_are_printed(three_classes):
    place, outputs = three_classes
    queries = [line.strip() for line in outputs["query"].splitlines() if line.strip().startswith("SELECT")]
    assert len(queries) >= 3
    for query in queries:
        rows = json.loads(run_job("query", "workspace/run", query, "--json", cwd=place).stdout)
        assert isinstance(rows, list)
    count = run_job("query", "workspace/run", "SELECT count(*) AS n FROM predictions", "--csv", cwd=place).stdout
    assert count.splitlines()[0] == '"n"'
    images = json.loads((place / "workspace/run/report/report.json").read_bytes())["images"]
    assert count.splitlines()[1] == str(images)


def test_a_second_infer_redoes_nothing_and_says_so(three_classes):
    place, outputs = three_classes
    result = run_job("infer", cwd=place)
    assert "is finished already: 3 units, nothing to do" in result.stderr
    assert result.stdout == outputs["infer"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_image_folder(root, 120)
    for copy in range(1, 12):
        for source in (root / "Positive").glob("*.jpg"):
            if "-" not in source.name:
                os.link(source, source.with_name(f"{source.stem}-{copy}.jpg"))
    (root / "Negative" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return root


def infer_arguments(photos: Path, bundle: Path, run: Path) -> list:
    places = ["--input", photos, "--model", bundle, "--out", run]
    return [*places, "--labels", "from-folder", "--images-per-unit", 25, "--threads", 1]


@pytest.fixture(scope="module")
def undisturbed(photos, tiny_bundle, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_job("infer", *infer_arguments(photos, tiny_bundle, run))
    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_killed_goes_on_and_equals_an_undisturbed_one(
    photos, tiny_bundle, undisturbed, tmp_path, number
):
    run = tmp_path / "run"
    arguments = infer_arguments(photos, tiny_bundle, run)
    process = subprocess.Popen(
        command("infer", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + 60
    while len(list((run / "_commits").glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert "Traceback" not in said
    assert not (run / "_SUCCESS").exists()
    committed = {path.name: path.stat().st_mtime_ns for path in (run / "_commits").glob("*.json")}

    result = run_job("infer", *arguments)
    assert f"{len(committed)} of " in result.stderr
    assert committed == {name: (run / "_commits" / name).stat().st_mtime_ns for name in committed}
    assert table_digests(run) == table_digests(undisturbed)
    assert len(table_digests(run)) > 30
    reports = [json.loads((each / "report" / "report.json").read_bytes()) for each in (run, undisturbed)]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["failures"] == 1


def test_a_run_that_another_process_is_writing_is_refused(photos, tiny_bundle, tmp_path):
    run = tmp_path / "run"
    arguments = infer_arguments(photos, tiny_bundle, run)
    with locked(str(run)):
        result = run_job("infer", *arguments, code=2)
    assert f"is being written by process {os.getpid()}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    run_job("infer", *arguments)


def test_the_core_works_without_tensorflow(photos, tiny_bundle, tmp_path):
    # What `pip install .` leaves out is made impossible to import.
    for name in ("tensorflow", "keras", "matplotlib", "sklearn"):
        (tmp_path / "missing" / name).mkdir(parents=True)
        (tmp_path / "missing" / name / "__init__.py").write_text(f"raise ImportError('no {name} here')")
    shutil.copytree(photos / "Negative", tmp_path / "photos")
    path = f"{tmp_path / 'missing'}{os.pathsep}{environment()['PYTHONPATH']}"
    for job, arguments in (
        ("infer", ["--input", tmp_path / "photos", "--model", tiny_bundle, "--out", tmp_path / "run"]),
        ("report", [tmp_path / "run"]),
        ("query", [tmp_path / "run", "SELECT count(*) FROM predictions"]),
    ):
        result = subprocess.run(
            command(job, *arguments), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert result.returncode == 0, result.stderr
    engine = subprocess.run(
        [*command("infer", "--input", tmp_path / "photos", "--model", tiny_bundle), "--engine", "savedmodel"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert engine.returncode == 2
    assert "pip install 'crackscan[train]'" in engine.stderr
