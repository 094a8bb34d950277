"""On real METU images with ImageNet weights: the published accuracy, and engines that agree."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import SHARED, run_job

from model.bundle import open_bundle
from model.engine import LiteRtEngine, SavedModelEngine
from model.preprocess import preprocess

IMAGES = SHARED / "data" / "metu"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"

pytestmark = pytest.mark.skipif(
    not (IMAGES.is_dir() and WEIGHTS.is_file()), reason=f"needs the METU images and ImageNet weights under {SHARED}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepare, train, infer on every twelfth image."""
    place = tmp_path_factory.mktemp("metu")
    for name in ("Negative", "Positive"):
        (place / "images" / name).mkdir(parents=True)
        for path in sorted((IMAGES / name).iterdir())[::12]:
            os.symlink(path, place / "images" / name / path.name)
    run_job("prepare", "--source", "images", "--shards", 4, "--split", "40/10/50", cwd=place)
    run_job("train", "--recipe", "frozen", "--weights", WEIGHTS, cwd=place)
    run_job("infer", cwd=place)
    return place


def test_the_frozen_recipe_reaches_the_published_accuracy(place):
    report = json.loads((place / "workspace/run/report/report.json").read_bytes())
    assert report["images"] == report["predictions"] > 400
    assert report["metrics"]["accuracy"] > 0.985
    assert report["metrics"]["f1"] > 0.985


def test_saved_model_and_litert_agree_on_a_thousand_real_images(place):
    bundle = open_bundle(str(place / "workspace/bundle"))
    litert, saved_model = LiteRtEngine(bundle, threads=1), SavedModelEngine(bundle)
    paths = sorted(path for name in bundle.spec.classes for path in (IMAGES / name).iterdir())[::12]
    assert len(paths) >= 1000
    pixels = np.stack([preprocess(path.read_bytes(), bundle.spec.image_size).pixels for path in paths])

    def probabilities(engine):
        batches = (pixels[start : start + engine.batch_size] for start in range(0, len(pixels), engine.batch_size))
        return np.concatenate([engine.predict(batch).probabilities for batch in batches])

    ours, reference = probabilities(litert), probabilities(saved_model)
    assert np.abs(ours - reference).max() < 1e-4
    assert (ours.argmax(axis=1) == reference.argmax(axis=1)).all()


def test_the_rows_of_the_run_are_the_images_of_the_split(place):
    rows = pa.concat_tables(
        pq.read_table(path) for path in sorted((place / "workspace/run/predictions").iterdir())
    ).to_pylist()
    info = json.loads((place / "workspace/data/dataset.json").read_bytes())
    assert len(rows) == sum(info["counts"]["test"].values())
    assert len({row["image_id"] for row in rows}) == len(rows)
    assert {(row["width"], row["height"]) for row in rows} == {(227, 227)}
