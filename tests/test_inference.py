"""The pipeline on Beam's in-process runner: what it commits, what it skips, what it refuses to finish."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import table_digests, write_image_folder, write_tfrecord_shards
from sklearn import metrics as sklearn_metrics

from model.bundle import open_bundle
from model.engine import LiteRtEngine
from model.errors import BundleError, InputError, RunError
from model.preprocess import preprocess
from pipelines import finish, inference, units
from pipelines.handler import WorkUnitModelHandler
from pipelines.inference_job import InferenceJob, run_inference
from pipelines.run import Totals, read_markers
from pipelines.sinks import commit, encode_parquet
from pipelines.units import InputConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_tfrecord_shards(root, 4, 30)
    (root / "test-00004-of-00005.tfrecord").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def undisturbed(shards, tiny_bundle, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_inference(job(shards, tiny_bundle, run))
    return run


def job(images: Path, bundle: Path, run: Path, **options) -> InferenceJob:
    return InferenceJob(InputConfig(str(images), **options), str(bundle), str(run), engine="litert", threads=2)


def predictions(run: Path) -> list[dict]:
    return pa.concat_tables(pq.read_table(path) for path in sorted((run / "predictions").iterdir())).to_pylist()


def test_every_unit_is_committed_and_the_run_is_finished(undisturbed):
    markers = list(read_markers(str(undisturbed)))
    assert [marker.images for marker in markers] == [30, 30, 30, 30, 0]
    assert len(list((undisturbed / "predictions").iterdir())) == 4
    assert json.loads((undisturbed / "_SUCCESS").read_bytes()) == {"units": 5, "images": 120, "failures": 0}
    assert not (undisturbed / "_tmp").exists()
    assert not (undisturbed / "_lock.json").exists()
    rows = predictions(undisturbed)
    assert len({row["image_id"] for row in rows}) == 120
    assert (undisturbed / "report" / "report.html").stat().st_size > 1000
    counters = json.loads((undisturbed / "report" / "metrics.json").read_bytes())["counters"]
    assert counters["crackscan/images_classified"] == 120
    assert counters["crackscan/units_classified"] == 5


def test_the_report_equals_scikit_learn_on_the_same_rows(undisturbed):
    rows = predictions(undisturbed)
    labels = [row["label"] for row in rows]
    predicted = [row["predicted_class"] for row in rows]
    metrics = json.loads((undisturbed / "report" / "report.json").read_bytes())["metrics"]
    theirs = sklearn_metrics.classification_report(labels, predicted, output_dict=True, zero_division=0)
    assert metrics["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-12)
    for name in ("Negative", "Positive"):
        assert metrics["per_class"][name]["support"] == theirs[name]["support"] == 60
        assert metrics["per_class"][name]["f1"] == pytest.approx(theirs[name]["f1-score"], abs=1e-12)
        for value in ("precision", "recall"):
            assert metrics["per_class"][name][value] == pytest.approx(theirs[name][value], abs=1e-12)
    for average in ("macro avg", "weighted avg"):
        ours = metrics[average.replace(" ", "_")]
        assert ours["f1"] == pytest.approx(theirs[average]["f1-score"], abs=1e-12)
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=["Negative", "Positive"])
    assert metrics["confusion_matrix"] == matrix.tolist()
    positive = np.array([row["probabilities"][1] for row in rows])
    auc = sklearn_metrics.roc_auc_score([label == "Positive" for label in labels], positive)
    assert abs(metrics["roc_auc"] - auc) <= metrics["roc_auc_error"] + 1e-12


def test_the_pipeline_says_what_the_engine_says_without_it(undisturbed, shards, tiny_bundle):
    bundle = open_bundle(str(tiny_bundle))
    engine = LiteRtEngine(bundle, threads=1)
    direct = {}
    for unit in units.plan_units(InputConfig(str(shards))):
        for image in units.read_unit_images(unit, bundle.spec.classes):
            pixels = preprocess(image.encoded, bundle.spec.image_size).pixels
            direct[image.image_id] = engine.predict(pixels[None]).probabilities[0]
    for row in predictions(undisturbed):
        np.testing.assert_allclose(row["probabilities"], direct.pop(row["image_id"]), atol=1e-6)
    assert not direct


def test_a_finished_run_is_left_as_it_is(undisturbed, shards, tiny_bundle):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    outcome = run_inference(job(shards, tiny_bundle, undisturbed))
    assert outcome.had_finished
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lost", [("000001",), ("000000", "000003"), ("000004",), ()])
def test_only_units_without_a_marker_are_done_again_and_the_tables_are_equal(
    undisturbed, shards, tiny_bundle, tmp_path, lost
):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "_SUCCESS").unlink()
    shutil.rmtree(run / "report")
    for marker in (run / "_commits").iterdir():
        if marker.name.startswith(lost or "-"):
            marker.unlink()
    for part in (run / "predictions").iterdir():
        if part.name.startswith(lost or "-"):
            part.write_bytes(b"half a part")
    kept = {path.name: path.stat().st_mtime_ns for path in (run / "_commits").iterdir()}
    outcome = run_inference(job(shards, tiny_bundle, run))
    assert outcome.units_before == 5 - len(lost)
    after = {path.name: path.stat().st_mtime_ns for path in (run / "_commits").iterdir()}
    assert {name: time for name, time in after.items() if name in kept} == kept
    assert table_digests(run) == table_digests(undisturbed)
    reports = [json.loads((each / "report" / "report.json").read_bytes())["metrics"] for each in (run, undisturbed)]
    assert reports[0] == reports[1]


def test_a_process_that_died_while_planning_leaves_a_folder_that_can_be_used(
    undisturbed, shards, tiny_bundle, tmp_path
):
    run = tmp_path / "run"
    (run / "plan").mkdir(parents=True)
    (run / "plan" / "plan-00000.jsonl").write_bytes(b'{"half')
    run_inference(job(shards, tiny_bundle, run))
    assert table_digests(run) == table_digests(undisturbed)


@pytest.mark.parametrize("damage", ["part gone", "part cut", "marker cut", "marker of another model"])
def test_a_marker_that_cannot_be_relied_on_is_void_and_its_unit_done_again(
    undisturbed, shards, tiny_bundle, tmp_path, damage
):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "_SUCCESS").unlink()
    marker = sorted((run / "_commits").iterdir())[1]
    part = run / "predictions" / f"{marker.stem}.parquet"
    if damage == "part gone":
        part.unlink()
    elif damage == "part cut":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "marker cut":
        marker.write_bytes(marker.read_bytes()[:50])
    else:
        values = json.loads(marker.read_bytes())
        marker.write_text(json.dumps({**values, "model_fingerprint": "another"}))
    run_inference(job(shards, tiny_bundle, run))
    assert table_digests(run) == table_digests(undisturbed)
    assert json.loads((run / "report" / "metrics.json").read_bytes())["counters"]["crackscan/units_classified"] == 1
    assert (run / "_SUCCESS").exists()


def test_damage_of_a_finished_run_is_said_and_can_be_mended(undisturbed, shards, tiny_bundle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    next((run / "predictions").iterdir()).unlink()
    with pytest.raises(RunError, match=r"is damaged.*one is gone.*remove .*_SUCCESS"):
        run_inference(job(shards, tiny_bundle, run))
    (run / "_SUCCESS").unlink()
    run_inference(job(shards, tiny_bundle, run))
    assert table_digests(run) == table_digests(undisturbed)


@pytest.mark.parametrize("content", [b"", b'[0, "a"', b"[0]\n"])
def test_a_damaged_plan_is_refused(undisturbed, shards, tiny_bundle, tmp_path, content):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "_SUCCESS").unlink()
    (run / "plan" / "places.jsonl").write_bytes(content)
    with pytest.raises(RunError, match="plan is damaged"):
        run_inference(job(shards, tiny_bundle, run))


def test_units_without_a_run_file_are_not_mixed_with_those_of_another_model(undisturbed, shards, tiny_bundle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "_SUCCESS").unlink()
    (run / "run.json").unlink()
    with pytest.raises(RunError, match=r"committed units and no run\.json"):
        run_inference(job(shards, tiny_bundle, run))


def test_a_mistaken_command_leaves_no_run_that_refuses_the_corrected_one(tiny_bundle, tmp_path):
    write_image_folder(tmp_path / "images", 4)
    run = tmp_path / "run"
    with pytest.raises(InputError, match="column:defect needs"):
        run_inference(job(tmp_path / "images", tiny_bundle, run, labels="column:defect"))
    assert run_inference(job(tmp_path / "images", tiny_bundle, run, labels="from-folder")).report["images"] == 4


def test_a_run_inside_its_input_is_refused_but_beside_a_manifest_it_is_fine(tiny_bundle, tmp_path):
    write_image_folder(tmp_path / "images", 4)
    with pytest.raises(InputError, match="inside the input"):
        run_inference(job(tmp_path, tiny_bundle, tmp_path / "runs" / "1"))
    paths = "\n".join(str(path) for path in sorted((tmp_path / "images").rglob("*.jpg")))
    (tmp_path / "list.csv").write_text(f"path\n{paths}\n")
    for _ in range(2):
        assert run_inference(job(tmp_path / "list.csv", tiny_bundle, tmp_path / "runs" / "1")).report["images"] == 4


def test_positions_go_on_from_unit_to_unit(tiny_bundle, tmp_path):
    write_image_folder(tmp_path / "images", 12)
    run_inference(job(tmp_path / "images", tiny_bundle, tmp_path / "run", images_per_unit=5))
    assert [row["position"] for row in predictions(tmp_path / "run")] == list(range(12))


def test_files_of_other_formats_are_counted(tiny_bundle, tmp_path):
    write_image_folder(tmp_path / "images", 2)
    for name in ("a.HEIC", "b.heic", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(b"x")
    report = run_inference(job(tmp_path / "images", tiny_bundle, tmp_path / "run")).report
    assert report["run"]["input_skipped"] == {".heic": 2, ".txt": 1}
    assert report["images"] == 2


def test_a_pipe_named_like_an_image_is_a_failure_and_no_endless_wait(tiny_bundle, tmp_path):
    write_image_folder(tmp_path / "images", 2)
    os.mkfifo(tmp_path / "images" / "Positive" / "pipe.jpg")
    outcome = run_inference(job(tmp_path / "images", tiny_bundle, tmp_path / "run"))
    assert outcome.report["failure_codes"] == {"read/not-a-file": 1}


def test_a_run_that_cannot_be_written_on_ends_in_one_line_and_goes_on_later(undisturbed, shards, tiny_bundle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "_SUCCESS").unlink()
    shutil.rmtree(run / "predictions")
    # A file where a folder must be: as unwritable as a full disk, for root too.
    (run / "predictions").write_bytes(b"")
    with pytest.raises(RunError, match="the same command continues") as caught:
        run_inference(job(shards, tiny_bundle, run))
    assert "while running" not in str(caught.value)
    (run / "predictions").unlink()
    run_inference(job(shards, tiny_bundle, run))
    assert table_digests(run) == table_digests(undisturbed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": -1}, "threads"),
        ({"model": ""}, "--model is empty"),
        ({"beam_arguments": ("--runner=NoSuchRunner",)}, "Beam cannot be set up"),
    ],
)
def test_options_without_a_meaning_are_refused(shards, tiny_bundle, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        run_inference(dataclasses.replace(job(shards, tiny_bundle, tmp_path / "run"), **options))
    assert not (tmp_path / "run").exists()


def test_another_configuration_input_or_model_is_refused(undisturbed, shards, tiny_bundle, tmp_path):
    with pytest.raises(RunError, match="labels was auto, is none"):
        run_inference(job(shards, tiny_bundle, undisturbed, labels="none"))
    with pytest.raises(RunError, match="images_per_unit was 1000, is 7"):
        run_inference(job(shards, tiny_bundle, undisturbed, images_per_unit=7))
    run, more = tmp_path / "run", tmp_path / "shards"
    shutil.copytree(shards, more)
    run_inference(job(more, tiny_bundle, run))
    (more / "test-00004-of-00005.tfrecord").write_bytes((more / "test-00000-of-00004.tfrecord").read_bytes())
    with pytest.raises(RunError, match="the files of the input have changed"):
        run_inference(job(more, tiny_bundle, run))


def test_what_cannot_be_used_is_refused_before_anything_is_written(shards, tiny_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"run python -m jobs\.train first"):
        run_inference(job(shards, tmp_path / "nothing", tmp_path / "run"))
    with pytest.raises(InputError, match="no file found"):
        run_inference(job(tmp_path / "nothing", tiny_bundle, tmp_path / "run"))
    with pytest.raises(InputError, match="engine"):
        run_inference(dataclasses.replace(job(shards, tiny_bundle, tmp_path / "run"), engine="warp"))
    assert not (tmp_path / "run").exists()


def test_a_changed_model_file_is_refused_before_a_run_begins(shards, tiny_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    data = bytearray((bundle / "model.tflite").read_bytes())
    data[-1] ^= 1
    (bundle / "model.tflite").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.tflite has changed"):
        run_inference(job(shards, bundle, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_labels_come_from_folders_only_when_asked_for(tiny_bundle, tmp_path):
    write_image_folder(tmp_path / "images", 12)
    for labels, expected in (("auto", {None}), ("from-folder", {"Negative", "Positive"}), ("none", {None})):
        run = tmp_path / labels
        outcome = run_inference(job(tmp_path / "images", tiny_bundle, run, labels=labels, images_per_unit=5))
        assert outcome.units == 3
        assert {row["label"] for row in predictions(run)} == expected
        assert (outcome.report["metrics"]["accuracy"] is None) == (expected == {None})


def test_bad_images_and_cut_shards_are_accounted_for(shards, tiny_bundle, tmp_path):
    cut = tmp_path / "shards"
    shutil.copytree(shards, cut)
    whole = (cut / "test-00002-of-00004.tfrecord").read_bytes()
    (cut / "test-00002-of-00004.tfrecord").write_bytes(whole[: len(whole) // 2])
    outcome = run_inference(job(cut, tiny_bundle, tmp_path / "run"))
    assert outcome.report["unit_failures"][0]["source"] == "test-00002-of-00004.tfrecord"
    assert 90 < outcome.report["images"] < 120
    assert outcome.report["predictions"] + outcome.report["failures"] == outcome.report["images"]
    assert (tmp_path / "run" / "_SUCCESS").exists()


def test_every_damaged_shard_of_a_unit_of_many_is_named(shards, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.units.MANY_SHARDS", 1)
    cut = tmp_path / "shards"
    shutil.copytree(shards, cut)
    names = [f"test-{number:05d}-of-00004.tfrecord" for number in (1, 2)]
    for name in names:
        (cut / name).write_bytes((cut / name).read_bytes()[:-1])
    outcome = run_inference(job(cut, tiny_bundle, tmp_path / "run"))
    assert outcome.units == 1
    assert [unit["source"] for unit in outcome.report["unit_failures"]] == names
    assert outcome.report["images"] == len(predictions(tmp_path / "run")) == 118


def test_units_are_elements_and_committed_ones_pass_as_totals(undisturbed):
    from apache_beam.testing.util import assert_that, equal_to

    from pipelines.runner import make_pipeline

    fingerprint = json.loads((undisturbed / "run.json").read_bytes())["model"]["fingerprint"]
    config = inference.InferenceConfig(str(undisturbed), "", "litert", ("Negative", "Positive"), fingerprint)
    with make_pipeline([]) as root:
        planned = root | inference.PlanUnits(config)
        images = planned[inference.COMMITTED] | beam.Map(lambda totals: totals.images)
        assert_that(images, equal_to([30, 30, 30, 30, 0]))
        assert_that(planned[inference.PENDING], equal_to([]), label="pending")


def test_the_handler_asks_for_one_unit_at_a_time():
    assert WorkUnitModelHandler("run", "bundle", "litert").batch_elements_kwargs() == {
        "min_batch_size": 1,
        "max_batch_size": 1,
    }


def test_a_unit_that_was_committed_in_the_meantime_is_passed_on_unread(undisturbed, tiny_bundle):
    run = str(undisturbed)
    handler = WorkUnitModelHandler(run, str(tiny_bundle), "litert", 1)
    network = handler.load_model()

    class Unusable:
        batch_size = 8

    network.engine = Unusable()
    place = next(inference.read_places(run))
    (result,) = handler.run_inference([place], network)
    assert result.tables is None
    totals, marker = inference.commit_result(result, run), next(read_markers(run))
    assert totals.units == 1
    assert totals.counts.to_json() == marker.counts.to_json()


def test_whoever_commits_second_writes_nothing(undisturbed, tiny_bundle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    place = next(units.places(str(run / "plan")))
    (first, *_) = read_markers(str(run))
    marker = run / "_commits" / f"{place.name}.json"
    content = marker.read_bytes()
    marker.unlink()
    model = WorkUnitModelHandler(str(run), str(tiny_bundle), "litert", 1)
    (result,) = model.run_inference([place], model.load_model())
    marker.write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert commit(str(run), *result).to_bytes() == first.to_bytes()
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_part_is_the_same_to_the_byte_each_time():
    table = pa.table({"a": list(range(1000)), "b": [str(n % 7) for n in range(1000)]})
    assert encode_parquet(table) == encode_parquet(table.combine_chunks())
    assert pq.read_table(pa.BufferReader(encode_parquet(table))).equals(table)


def totals_of(run: Path) -> Totals:
    markers = [Totals.of(marker) for marker in read_markers(str(run))]
    return sum(markers[1:], markers[0])


def test_a_run_whose_accounting_does_not_hold_is_not_finished(undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    totals = totals_of(run)
    finish.check_accounting(totals, str(run))
    with pytest.raises(RunError, match="do not account for 121 images"):
        finish.check_accounting(dataclasses.replace(totals, images=121), str(run))
    (run / "predictions" / "999999-aa.parquet").write_bytes(b"")
    with pytest.raises(RunError, match=r"999999-aa\.parquet, which no unit"):
        finish.check_accounting(totals, str(run))
    (run / "predictions" / "999999-aa.parquet").unlink()
    next((run / "predictions").iterdir()).unlink()
    with pytest.raises(RunError, match="one is gone"):
        finish.check_accounting(totals, str(run))
    next((run / "_commits").iterdir()).unlink()
    with pytest.raises(RunError, match="5 units are planned, 4 committed"):
        finish.check_accounting(totals, str(run))


def test_the_report_can_be_written_again_at_any_time(undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    before = json.loads((run / "report" / "report.json").read_bytes())
    shutil.rmtree(run / "report")
    finish.write_report(str(run), finish.make_report(str(run)))
    assert json.loads((run / "report" / "report.json").read_bytes()) == before
    next((run / "_commits").iterdir()).unlink()
    assert finish.make_report(str(run))["units"] == 4
