import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import environment, write_image_folder

from benchmarks import recipes, recipes_training
from benchmarks.recipes import chosen_recipes
from benchmarks.recipes_table import BEGIN, COLUMNS, END, PUBLISHED, Outcome, put_between_markers, to_markdown
from benchmarks.recipes_training import Source, data_folder, train_recipe, training_command, whole_bundle
from model.bundle import LITERT_FILE, Bundle, open_bundle
from model.dataset_info import read_dataset
from model.errors import InputError
from model.recipes import DESCRIPTIONS, RECIPES, recipe_named

SMALL = recipe_named("small")


def as_recipe(bundle, name, **values):
    """The same bundle as if another recipe had made it, with other values of its test metrics."""
    metrics = bundle.values["metrics"]
    changed = {key: value for key, value in values.items() if key != "seconds"}
    training = bundle.values["training"] | {"seconds": values.get("seconds", 10.0)}
    test = metrics["test"] | changed
    return Outcome(
        recipe_named(name),
        Bundle(bundle.path, bundle.spec, {"metrics": metrics | {"test": test}, "training": training}),
    )


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_published_results_are_of_recipes_that_there_are():
    assert PUBLISHED.keys() <= RECIPES.keys()


def test_recipes_are_chosen_by_name_in_the_order_given_or_all_in_their_own():
    assert [recipe.recipe for recipe in chosen_recipes("all")] == list(RECIPES)
    assert [recipe.recipe for recipe in chosen_recipes("small, frozen")] == ["small", "frozen"]
    assert chosen_recipes("small", 1) == [SMALL.with_overrides(epochs=1)]
    with pytest.raises(InputError, match="no recipe 'tiny'"):
        chosen_recipes("small,tiny")


def test_recipes_of_one_split_share_their_data(tmp_path):
    assert data_folder(tmp_path, SMALL).name == "data-60-20-20-seed-0"
    other = dataclasses.replace(SMALL, split=(70, 24, 6), split_seed=1337)
    assert data_folder(tmp_path, other).name == "data-70-24-6-seed-1337"


def test_only_backbones_that_have_weights_are_given_some(tmp_path):
    recipe = dataclasses.replace(recipe_named("frozen"), seed=3)
    command = training_command(recipe, tmp_path / "data", tmp_path / "frozen", "/weights.h5", 2)
    assert command[command.index("--weights") + 1] == "/weights.h5"
    assert command[command.index("--epochs") + 1] == "2"
    assert command[command.index("--seed") + 1] == "3"
    assert "--resume" in command
    assert "--overwrite" not in command
    without = training_command(SMALL, tmp_path / "data", tmp_path / "small", None, None)
    assert not {"--weights", "--epochs"} & set(without)


def test_a_bundle_is_whole_only_for_its_own_recipe_data_and_weights(tiny_bundle, tiny_data, tmp_path):
    info = read_dataset(str(tiny_data))
    recipe = SMALL.with_overrides(image_size=32, epochs=8, batch_size=8)
    assert whole_bundle(tiny_bundle, recipe, info, None).path == str(tiny_bundle)
    assert whole_bundle(tiny_bundle, recipe.with_overrides(epochs=9), info, None) is None
    assert whole_bundle(tiny_bundle, recipe, dataclasses.replace(info, fingerprint="other"), None) is None
    assert whole_bundle(tiny_bundle, recipe, info, "/other/weights.h5") is None
    assert whole_bundle(tmp_path / "absent", recipe, info, None) is None
    command = training_command(recipe, tiny_data, tiny_bundle, None, None)
    assert command[-1] == "--overwrite"


def test_a_row_says_what_was_published_and_what_came_out(tiny_bundle):
    bundle = open_bundle(str(tiny_bundle))
    test = {"accuracy": 0.99618, "f1": 0.99512, "images": 2473, "confusion_matrix": [[1200, 3], [1, 1269]]}
    outcome = as_recipe(bundle, "frozen", seconds=1234.4, **test)
    outcome.bundle.values["metrics"]["test_int8"] = {"accuracy": 0.9937}
    lines = to_markdown([outcome, as_recipe(bundle, "small", **test)]).splitlines()
    assert tuple(cells(lines[0])) == COLUMNS
    size = f"{(tiny_bundle / LITERT_FILE).stat().st_size / 1e6:.1f}"
    assert cells(lines[2]) == [
        *("`frozen`", DESCRIPTIONS["frozen"], "accuracy and F1 0.9986", "0.9962", "0.9951"),
        *("4 of 2,473", "1,234", size, "0.9937"),
    ]
    assert cells(lines[3])[2] == ""


def test_below_the_table_augmentation_is_compared_and_epochs_are_counted(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    bundle = open_bundle(str(tmp_path / "bundle"))
    recipe = recipe_named("two-stage")
    epochs = [{"stage": stage.name, "epoch": 1} for stage in recipe.stages for _ in range(stage.epochs - 1)]
    (tmp_path / "bundle" / "training" / "history.json").write_text(json.dumps(epochs[1:]))
    outcomes = [
        as_recipe(bundle, "frozen", accuracy=0.9985, f1=0.9984, seconds=100.0),
        as_recipe(bundle, "frozen-augmented", accuracy=0.998, f1=0.9986, seconds=169.0),
        as_recipe(bundle, "two-stage"),
    ]
    table, _, notes = to_markdown(outcomes).partition("\n\n")
    assert len(table.splitlines()) == 5
    first, second = recipe.stages
    compared, counted = notes.splitlines()
    assert compared == (
        "- `frozen-augmented` beside `frozen`: accuracy 0.9980 against 0.9985 (-0.05 points), "
        "F1 0.9986 against 0.9984 (+0.02 points), 1.69 times the seconds"
    )
    assert counted == (
        f"- `two-stage`: {len(epochs) - 1} of {first.epochs + second.epochs} epochs ran "
        f"({first.name} {first.epochs - 2} of {first.epochs}, {second.name} {second.epochs - 1} of {second.epochs})"
    )


def test_a_failed_recipe_is_a_row_that_says_so():
    page = to_markdown([Outcome(recipe_named("frozen"), None, "exit code 1: out | of\nmemory")])
    row = next(line for line in page.splitlines() if "`frozen`" in line)
    assert row.count("|") == len(COLUMNS) + 1
    assert cells(row)[3] == "failed"
    assert "- `frozen` failed: exit code 1: out \\| of memory" in page


def test_what_stands_between_the_markers_is_replaced_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# title\r\n\nä text\n", "\n\n| other | table |\n"
    readme.write_bytes(f"{before}{BEGIN}\nold\n{END}{after}".encode())
    put_between_markers(readme, "| new |\n")
    put_between_markers(readme, "| newer |\n")
    assert readme.read_bytes().decode() == f"{before}{BEGIN}\n| newer |\n{END}{after}"


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_missing_markers_are_refused_before_anything_is_trained(tmp_path, text):
    write_image_folder(tmp_path / "photos", 2)
    readme = tmp_path / "README.md"
    readme.write_text(text)
    options = ["--images", tmp_path / "photos", "--weights", "none", "--out", tmp_path / "out", "--readme", readme]
    with pytest.raises(InputError, match="needs the lines <!-- recipes --> and <!-- /recipes -->"):
        recipes.main([*map(str, options)])
    assert not (tmp_path / "out").exists()
    assert readme.read_text() == text


def test_a_bad_option_is_refused(tmp_path):
    options = ["--images", str(tmp_path), "--weights", "none", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--limit must be 2 or more"):
        recipes.main([*options, "--limit", "1"])
    with pytest.raises(InputError, match="no images in subfolders"):
        recipes.main(options)
    write_image_folder(tmp_path / "photos", 2)
    options = ["--images", str(tmp_path / "photos"), *options[2:], "--readme", str(tmp_path / "absent.md")]
    with pytest.raises(InputError, match="cannot read"):
        recipes.main(options)


def test_a_recipe_that_fails_does_not_stop_the_others_and_one_that_is_whole_is_not_trained_again(
    tmp_path, monkeypatch, capfd
):
    write_image_folder(tmp_path / "photos", 40)
    readme, out = tmp_path / "README.md", tmp_path / "out"
    (out / "frozen").mkdir(parents=True)
    (out / "frozen" / "notes.txt").touch()
    readme.write_text(f"{BEGIN}\n{END}\n")
    options = ["--images", tmp_path / "photos", "--weights", "none", "--out", out, "--epochs", "1"]
    options = [*map(str, options), "--recipes", "frozen,small"]
    assert recipes.main([*options, "--readme", str(readme)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["[1/2] frozen"] * 2 + ["[2/2] small"] * 2
    assert lines[1].startswith("[1/2] frozen: failed: exit code 2: crackscan: ")
    assert "is no model bundle" in lines[1]
    assert re.search(r"test accuracy [01]\.\d{4}, F1 [01]\.\d{4}, trained in \d+ s", lines[3])
    assert open_bundle(str(out / "small")).values["training"]["recipe"] == "small"
    assert "is no model bundle" in (out / "frozen.log").read_text()
    assert (out / "data-60-20-20-seed-0" / "_cache").is_dir()
    table = (out / "recipes.md").read_text()
    assert readme.read_text() == f"{BEGIN}\n{table}{END}\n"
    assert f"| `frozen` | {DESCRIPTIONS['frozen']} | {PUBLISHED['frozen']} | failed |" in table

    monkeypatch.setattr(recipes_training, "training_command", lambda *_: pytest.fail("trains again"))
    assert recipes.main([*options[:-1], "small"]) == 0
    captured = capfd.readouterr()
    assert "(done before)" in captured.err
    assert captured.out == (out / "recipes.md").read_text() + "\n"
    assert "`frozen`" not in captured.out


def test_a_training_that_leaves_no_bundle_is_a_failure(tiny_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(recipes_training, "prepare_data", lambda *_: read_dataset(str(copy)))
    monkeypatch.setattr(recipes_training, "training_command", lambda *_: [sys.executable, "-c", "print('nothing')"])
    copy = shutil.copytree(tiny_data, tmp_path / "data")
    outcome = train_recipe(SMALL, Source(tmp_path, "none"), tmp_path, "step: ")
    assert outcome.bundle is None
    assert outcome.error == f"jobs.train left no bundle of this recipe at {tmp_path / 'small'}"
    assert capfd.readouterr().err.splitlines()[-1] == f"step: failed: {outcome.error}"


def test_a_signal_ends_the_training_too(tmp_path):
    script = f"""
import sys
from pathlib import Path
from benchmarks.recipes_training import _run
from jobs.command import run_command
training = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
run_command(lambda: _run([sys.executable, "-c", training], Path({str(tmp_path / "log")!r})), continues=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment())
    log = tmp_path / "log"
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == "crackscan: terminated; the same command continues\n"
    assert not Path("/proc", log.read_text().strip()).exists()
