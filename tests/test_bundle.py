"""Bundles: nothing half at their place, nothing replaced by accident, every change noticed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from model.bundle import FORMAT_VERSION, BundleWriter, model_fingerprint, open_bundle, sha256_of_file
from model.errors import BundleError, InputError
from model.spec import ModelSpec

SPEC = ModelSpec(
    classes=("Negative", "Positive"),
    positive_class="Positive",
    image_size=32,
    threshold=0.5,
    backbone="small_cnn",
    recipe="small",
    embedding_size=8,
    data_fingerprint="ab12",
)
SAVED_MODEL = (
    "saved_model.pb",
    "fingerprint.pb",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
)
FILES = (*SAVED_MODEL, "assets/table.txt", "model.tflite", "model.keras", "reference.json", "training/history.json")


def fill(writer: BundleWriter, text: str = "") -> None:
    for name in FILES:
        path = writer.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name} {text}")


def write(out, text: str = "", overwrite: bool = False):
    writer = BundleWriter(str(out), overwrite)
    fill(writer, text)
    return writer.finish(SPEC, {"metrics": {"accuracy": 0.5}})


def tree(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_nothing_is_at_its_place_until_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "bundle"
    writer = BundleWriter(str(out))
    fill(writer)
    assert not out.exists()
    bundle = writer.finish(SPEC, {"metrics": {"accuracy": 0.5}})
    assert tree(out) == sorted((*FILES, "model.json"))
    assert list(out.parent.iterdir()) == [out]
    assert bundle == open_bundle(str(out))


def test_an_opened_bundle_says_what_was_written(tmp_path):
    write(tmp_path / "bundle")
    bundle = open_bundle(str(tmp_path / "bundle"))
    assert dataclasses.replace(bundle.spec, fingerprint="") == SPEC
    assert bundle.spec.fingerprint == model_fingerprint(SPEC, bundle.values["files"])
    assert bundle.values["metrics"] == {"accuracy": 0.5}
    assert bundle.values["files"] == {name: sha256_of_file(tmp_path / "bundle" / name) for name in FILES}
    assert bundle.verified("model.tflite") == str(tmp_path / "bundle" / "model.tflite")
    assert bundle.verified_saved_model() == str(tmp_path / "bundle")


def test_a_discarded_bundle_leaves_nothing(tmp_path):
    writer = BundleWriter(str(tmp_path / "bundle"))
    fill(writer)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_does_not_get_into_the_next_bundle(tmp_path):
    killed = BundleWriter(str(tmp_path / "bundle"))
    (killed.folder / "stray.txt").write_text("stray")
    write(tmp_path / "bundle")
    assert tree(tmp_path / "bundle") == sorted((*FILES, "model.json"))


def test_a_bundle_is_replaced_only_when_asked_to_and_only_when_the_new_one_is_whole(tmp_path):
    out = tmp_path / "bundle"
    first = write(out, "first")
    with pytest.raises(InputError, match="holds a model bundle already: give --overwrite"):
        BundleWriter(str(out))
    writer = BundleWriter(str(out), overwrite=True)
    fill(writer, "second")
    assert open_bundle(str(out)) == first
    second = writer.finish(SPEC, {})
    assert open_bundle(str(out)) == second
    assert second.spec.fingerprint != first.spec.fingerprint
    assert list(tmp_path.iterdir()) == [out]


def test_the_old_bundle_stays_where_the_new_one_is_discarded(tmp_path):
    first = write(tmp_path / "bundle")
    writer = BundleWriter(str(tmp_path / "bundle"), overwrite=True)
    fill(writer, "second")
    writer.discard()
    assert open_bundle(str(tmp_path / "bundle")) == first
    first.verified_saved_model()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_or_file_that_is_no_bundle_is_never_replaced(tmp_path, overwrite):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "only_copy.jpg").write_text("precious")
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    for out in (photos, file):
        with pytest.raises(InputError, match="is there already and is no model bundle: choose another --out"):
            BundleWriter(str(out), overwrite)
    assert tree(tmp_path) == ["notes.txt", "photos/only_copy.jpg"]


def test_an_empty_folder_may_become_a_bundle(tmp_path):
    (tmp_path / "bundle").mkdir()
    write(tmp_path / "bundle")
    assert open_bundle(str(tmp_path / "bundle")).spec.image_size == 32


def test_the_current_folder_can_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "file").write_text("precious")
    with pytest.raises(InputError, match=r"^\. is there already"):
        BundleWriter(".")


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write to"):
        BundleWriter(str(tmp_path / "file" / "bundle"))


@pytest.mark.parametrize("damage", ["changed", "missing", "a folder"])
@pytest.mark.parametrize("name", SAVED_MODEL)
def test_every_file_of_the_saved_model_is_checked_by_name(tmp_path, name, damage):
    bundle = write(tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    if damage == "a folder":
        path.mkdir()
    with pytest.raises(BundleError, match=name) as caught:
        bundle.verified_saved_model()
    assert str(caught.value).endswith("train the bundle again")
    # The other engine reads another file.
    bundle.verified("model.tflite")


@pytest.mark.parametrize("name", ["model.tflite", "reference.json", "model.keras", "training/history.json"])
def test_every_other_file_is_checked_when_it_is_read(tmp_path, name):
    bundle = write(tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    path.write_text(path.read_text() + " ")
    with pytest.raises(BundleError, match=f"{name} has changed since it was written"):
        bundle.verified(name)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read: No such file"):
        bundle.verified(name)


@pytest.mark.parametrize("name", ["model_int8.tflite", "../secrets", "model.json"])
def test_a_file_that_is_none_of_the_bundles_is_refused(tmp_path, name):
    bundle = write(tmp_path / "bundle")
    with pytest.raises(BundleError, match=f"has no {name}"):
        bundle.verified(name)


def edit(out, **values: object) -> None:
    path = out / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 0.1},
        {"classes": ["Positive", "Negative"]},
        {"positive_class": "Negative"},
        {"image_size": 64},
        {"backbone": "MobileNetV2"},
        {"recipe": "frozen"},
        {"embedding_size": 7},
        {"data_fingerprint": "cd34"},
        {"fingerprint": "0" * 64},
        {"files": {"model.tflite": "0" * 64}},
    ],
)
def test_an_edited_model_json_is_refused(tmp_path, values):
    write(tmp_path / "bundle")
    edit(tmp_path / "bundle", **values)
    with pytest.raises(BundleError, match=r"model\.json has changed since it was written"):
        open_bundle(str(tmp_path / "bundle"))


def test_a_hash_replaced_along_with_its_file_is_noticed(tmp_path):
    bundle = write(tmp_path / "bundle")
    path = tmp_path / "bundle" / "model.tflite"
    path.write_text("another network")
    edit(tmp_path / "bundle", files={**bundle.values["files"], "model.tflite": sha256_of_file(path)})
    with pytest.raises(BundleError, match=r"model\.json has changed"):
        open_bundle(str(tmp_path / "bundle"))


@pytest.mark.parametrize(
    "values",
    [
        {"classes": ["one"]},
        {"classes": 3},
        {"threshold": 7},
        {"threshold": "high"},
        {"files": []},
        {"files": None},
        {"format_version": "new"},
        {"format_version": None},
    ],
)
def test_a_model_json_with_impossible_values_is_called_damaged(tmp_path, values):
    write(tmp_path / "bundle")
    edit(tmp_path / "bundle", **values)
    with pytest.raises(BundleError, match=r"model\.json is damaged"):
        open_bundle(str(tmp_path / "bundle"))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "{}", '{"format_version": 1}', "\xff\xfe"])
def test_a_model_json_that_is_cut_or_none_is_called_damaged(tmp_path, content):
    write(tmp_path / "bundle")
    (tmp_path / "bundle" / "model.json").write_text(content, encoding="latin-1")
    with pytest.raises(BundleError, match=r"model\.json is damaged") as caught:
        open_bundle(str(tmp_path / "bundle"))
    assert "\n" not in str(caught.value)


def test_a_later_version_is_refused_even_when_its_fields_are_others(tmp_path):
    write(tmp_path / "bundle")
    edit(tmp_path / "bundle", format_version=FORMAT_VERSION + 1)
    with pytest.raises(BundleError, match=f"is of version {FORMAT_VERSION + 1}; .* upgrade it"):
        open_bundle(str(tmp_path / "bundle"))
    (tmp_path / "bundle" / "model.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(BundleError, match="upgrade it"):
        open_bundle(str(tmp_path / "bundle"))


def test_where_there_is_no_bundle_the_message_says_what_to_run(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        with pytest.raises(BundleError, match=r"no model bundle at .*: run python -m jobs\.train first"):
            open_bundle(str(path))


def test_the_fingerprint_tells_networks_and_specs_apart_and_leaves_out_the_rest():
    files = dict.fromkeys(FILES, "00")
    base = model_fingerprint(SPEC, files)
    assert model_fingerprint(dataclasses.replace(SPEC, fingerprint="ff"), files) == base
    assert model_fingerprint(dataclasses.replace(SPEC, threshold=0.4), files) != base
    for name in FILES:
        decides = name in (*SAVED_MODEL, "assets/table.txt", "model.tflite")
        assert (model_fingerprint(SPEC, {**files, name: "11"}) != base) == decides
