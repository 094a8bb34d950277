import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment, write_image_folder

from benchmarks import training
from benchmarks.rounds import open_results
from benchmarks.training import sides, summarise, to_markdown
from benchmarks.training_data import (
    find_weights,
    images_digest,
    limited_source,
    prepare_data,
    write_image_folders,
)
from benchmarks.training_rounds import COLD, PEER, WARM, Result, Side, run_rounds
from model.errors import InputError
from model.recipes import recipe_named
from model.spec import ModelSpec

SPEC = ModelSpec(("a", "b"), "b", 32, 0.5, "small_cnn", "small", 4, "")

OURS = f"""
import pathlib, sys
from model.bundle import BundleWriter
from model.spec import ModelSpec
cache = pathlib.Path(sys.argv[1], "_cache", "key")
with open(pathlib.Path(sys.argv[1], "calls"), "a") as calls:
    calls.write("w" if cache.exists() else "c")
cache.mkdir(parents=True, exist_ok=True)
(cache / "features").touch()
writer = BundleWriter("bundle")
writer.finish({SPEC!r}, {{"metrics": {{"test": {{"accuracy": 0.9, "images": 10}}}}}})
"""
PEERS = """
import json, pathlib, sys
with open(pathlib.Path(sys.argv[1], "calls"), "a") as calls:
    calls.write("p")
print("epoch 1")
print(json.dumps({"accuracy": 0.8, "images": 10, "device": "CPU"}))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folder of 24 synthetic images, a subfolder per class. Read only."""
    folder = tmp_path_factory.mktemp("photos")
    write_image_folder(folder, 24)
    return folder


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    """What ``dataset.json`` says of ``photos``, prepared. Read only."""
    recipe = dataclasses.replace(recipe_named("frozen"), split=(50, 25, 25), split_seed=7)
    return prepare_data(photos, tmp_path_factory.mktemp("prepared") / "data", recipe)


def scripted(data, ours=OURS, peer=PEERS):
    rows = ((COLD, ours), (WARM, ours), (PEER, peer))
    return [Side(name, (sys.executable, "-c", script, str(data))) for name, script in rows]


def digests(paths):
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)


def result(side, number, seconds, accuracy):
    return Result(side, number, seconds, accuracy, images=400, peak_total_mb=1000.0, load=0.5, device="CPU")


def test_weights_are_found_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.h5").touch()
    assert find_weights("weights.h5") == str(tmp_path / "weights.h5")
    assert (find_weights("none"), find_weights("imagenet")) == ("none", "imagenet")
    with pytest.raises(InputError, match=r"no weights file absent\.h5"):
        find_weights("absent.h5")


def test_a_limited_source_is_a_copy_that_is_made_once(photos, tmp_path):
    assert limited_source(photos, None, tmp_path) == photos
    copies = limited_source(photos, 6, tmp_path)
    copied = sorted(copies.glob("*/*"))
    assert len(copied) == 6
    assert {path.parent.name for path in copied} == {"Negative", "Positive"}
    assert digests(copied) == digests(photos / path.relative_to(copies) for path in copied)
    copied[0].unlink()
    assert limited_source(photos, 6, tmp_path) == copies
    assert not copied[0].exists()


def test_the_digest_knows_which_images(photos):
    chosen = sorted(photos.glob("*/*"))
    assert images_digest(photos, chosen) == images_digest(photos, chosen)
    assert images_digest(photos, chosen) != images_digest(photos, chosen[1:])


def test_images_are_prepared_with_the_recipes_split_and_seed(photos, prepared):
    assert (prepared.split, prepared.seed) == ((0.5, 0.25, 0.25), 7)
    with pytest.raises(InputError, match="prepared with another split, seed or number of shards"):
        prepare_data(photos, Path(prepared.data), recipe_named("frozen"))


def test_image_folders_hold_the_bytes_of_the_shards_in_the_same_splits(photos, prepared, tmp_path):
    files = write_image_folders(prepared, tmp_path / "files")
    counts = {
        split: {name: len(list((files / split / name).iterdir())) for name in prepared.classes}
        for split in ("train", "val", "test")
    }
    assert counts == prepared.counts
    assert digests(files.glob("*/*/*")) == digests(photos.glob("*/*"))
    assert write_image_folders(prepared, files) == files


def test_the_peer_trains_evaluates_and_exports(prepared, tmp_path):
    files = write_image_folders(prepared, tmp_path / "files")
    options = ["--images", files, "--weights", "none", "--out", tmp_path, "--image-size", "32", "--epochs", "1"]
    command = [sys.executable, "-m", "benchmarks.training_peer", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer.keys() == {"accuracy", "images", "device"}
    assert answer["images"] == prepared.count("test")
    assert answer["accuracy"] * answer["images"] == pytest.approx(
        round(answer["accuracy"] * answer["images"]), abs=1e-4
    )
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def test_both_sides_train_the_same_recipe(tmp_path):
    recipe = recipe_named("frozen").with_overrides(epochs=2)
    cold, warm, peer = sides(recipe, tmp_path / "data", tmp_path / "files", "/weights.h5", 2)
    assert cold.command == warm.command
    ours, theirs = (dict(zip(side.command[3::2], side.command[4::2], strict=True)) for side in (cold, peer))
    assert ours.pop("--out") == "bundle"
    assert ours == {
        "--recipe": "frozen",
        "--data": str(tmp_path / "data"),
        "--weights": "/weights.h5",
        "--epochs": "2",
    }
    assert (theirs["--weights"], theirs["--epochs"]) == ("/weights.h5", "2")
    assert theirs["--image-size"] == str(recipe.image_size)
    assert theirs["--batch-size"] == str(recipe.batch_size)
    assert float(theirs["--learning-rate"]) == recipe.stages[0].learning_rate
    assert "--epochs" not in sides(recipe, tmp_path, tmp_path, "none", None)[0].command


def test_the_cache_is_empty_for_cold_and_filled_for_warm_and_a_restart_goes_on(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "_cache" / "old").mkdir(parents=True)
    out = tmp_path / "out"
    open_results(out, {"images": "one"})
    results = run_rounds(out, scripted(data), 2, data, 60.0)
    assert (data / "calls").read_text() == "cwpcwp"
    assert [(each.side, each.round, each.accuracy) for each in results] == [
        *((COLD, 1, 0.9), (WARM, 1, 0.9), (PEER, 1, 0.8)),
        *((COLD, 2, 0.9), (WARM, 2, 0.9), (PEER, 2, 0.8)),
    ]
    assert run_rounds(out, scripted(data), 2, data, 60.0) == results
    assert (data / "calls").read_text() == "cwpcwp"

    (out / "rounds" / "02-warm.json").unlink()
    (data / "_cache" / "key" / "features").unlink()
    (data / "_cache" / "key").rmdir()
    run_rounds(out, scripted(data), 2, data, 60.0)
    assert (data / "calls").read_text() == "cwpcwpcw"


def test_a_side_that_fails_is_one_line_and_what_was_measured_is_kept(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    out = tmp_path / "out"
    open_results(out, {"images": "one"})
    with pytest.raises(InputError, match="peer failed with exit code 1: ValueError: not today; see "):
        run_rounds(out, scripted(data, peer="raise ValueError('not today')"), 1, data, 60.0)
    assert sorted(path.name for path in (out / "rounds").iterdir()) == ["01-cold.json", "01-warm.json"]
    with pytest.raises(InputError, match=r"peer was not finished after 0 s"):
        run_rounds(out, scripted(data, peer="import time; time.sleep(60)"), 1, data, 0.1)
    run_rounds(out, scripted(data), 1, data, 60.0)
    assert (data / "calls").read_text() == "cwp"


def test_medians_are_over_rounds_and_the_page_says_what_was_reached():
    results = [
        *(result(COLD, number, seconds, 0.998) for number, seconds in enumerate((10.0, 30.0, 11.0), 1)),
        *(result(WARM, number, seconds, 0.9995) for number, seconds in enumerate((5.0, 5.0, 5.0), 1)),
        *(result(PEER, number, seconds, 0.9985) for number, seconds in enumerate((40.0, 60.0, 66.0), 1)),
    ]
    cold, warm, peer = summarise(results)
    assert (cold["seconds"], cold["lowest"], cold["highest"]) == (11.0, 10.0, 30.0)
    assert cold["shorter_by"] == pytest.approx(4.0)
    assert cold["points"] == pytest.approx(-0.05)
    assert warm["shorter_by"] == pytest.approx(12.0)
    assert warm["points"] == pytest.approx(0.1)
    assert (peer["shorter_by"], peer["points"]) == (1.0, 0.0)
    page = to_markdown([cold, {**warm, "shorter_by": 7.9, "points": 0.11}, peer], ["a fact"])
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "| 11.0 | 10.0 to 30.0 | 4.00 x | 4 x: reached | 0.9980 | -0.05 | within 0.1: reached | 1,000 |" in table[2]
    assert "| 7.90 x | 8 x: missed | 0.9995 | +0.11 | within 0.1: missed |" in table[3]
    assert "| 60.0 | 40.0 to 66.0 |  |  | 0.9985 |  |  | 1,000 |" in table[4]
    assert "- a fact" in page


def test_the_whole_command_measures_writes_the_page_and_measures_nothing_twice(photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(training, "sides", lambda recipe, data, files, weights, epochs: scripted(data))
    options = ["--images", str(photos), "--weights", "none", "--out", str(out), "--limit", "12", "--epochs", "1"]
    assert training.main(options) == 0
    page = (out / "training.md").read_text()
    assert capsys.readouterr().out == page + "\n"
    assert "- 12 images, of these 10 in the test split\n" in page
    assert "160 x 160, batch 32, 1 epoch\n" in page
    values = json.loads((out / "training.json").read_text())
    assert [side["name"] for side in values["sides"]] == [COLD, WARM, PEER]
    assert training.main(options) == 0
    assert (out / "data" / "calls").read_text() == "cwp"
    with pytest.raises(InputError, match="was begun with other images"):
        training.main([*options, "--epochs", "2"])
    assert len(list((out / "files").glob("*/*/*"))) == 12


def test_a_bad_option_is_refused(tmp_path):
    with pytest.raises(InputError, match="--rounds must be 1 or more"):
        training.main(["--images", str(tmp_path), "--weights", "none", "--rounds", "0"])
    with pytest.raises(InputError, match="no images in subfolders"):
        training.main(["--images", str(tmp_path), "--weights", "none", "--out", str(tmp_path / "out")])
