"""The model that comes with the package: whole, and used where none was trained."""

import json

from helpers import run_job, write_image_folder

from model.bundle import PRETRAINED, open_bundle


def test_every_file_of_the_bundle_is_there_and_unchanged():
    bundle = open_bundle(PRETRAINED)
    expected = {"saved_model.pb", "model.tflite", "model_int8.tflite", "model.keras", "reference.json"}
    assert expected <= set(bundle.values["files"])
    for name in bundle.values["files"]:
        bundle.verified(name)
    assert bundle.values["metrics"]["test"]["accuracy"] >= 0.99


def test_photos_are_classified_without_a_training(tmp_path):
    write_image_folder(tmp_path / "photos", 60)
    result = run_job("infer", "--input", "photos", "--labels", "from-folder", cwd=tmp_path)
    assert "using the concrete-crack model that comes with crackscan" in result.stderr
    report = json.loads((tmp_path / "workspace/run/report/report.json").read_bytes())
    # Drawn patches are not what it was trained on; it is far from guessing all the same.
    assert report["metrics"]["accuracy"] > 0.8
