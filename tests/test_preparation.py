"""Preparation: what is kept, where it falls, what is refused, and that the shards hold what they should."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import prepare as job
from model.dataset_info import SPLITS, DatasetInfo, read_dataset, shard_name
from model.errors import InputError
from pipelines import preparation, tfrecord
from pipelines import preparation_steps as steps
from pipelines.data_folder import locked
from pipelines.preparation import PreparationConfig, parse_split
from pipelines.preparation_steps import ImageMetadata, Rejection, assign
from pipelines.runner import make_pipeline
from pipelines.source import SourceImage

ROOT = Path(__file__).parents[1]


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def make_files(count: int = 24) -> dict[str, bytes]:
    return {
        f"{name}/{i:03d}.jpg": picture(2 * i + k) for i in range(count // 2) for k, name in enumerate(("No", "Yes"))
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def run(source: Path | str, out: Path, **options: object) -> tuple[DatasetInfo, bool]:
    config = PreparationConfig(str(source), str(out), **{"shards": 2, **options})
    return preparation.prepare(config, lambda: make_pipeline([]))


def features_of(record: bytes) -> dict[str, bytes | int]:
    example = tfrecord._Example.FromString(record)
    values = {
        key: (value.bytes_list.value or value.int64_list.value)[0] for key, value in example.features.feature.items()
    }
    return {key.removeprefix("image/"): value for key, value in values.items()}


def read_shards(out: Path, shards: int = 2) -> dict[str, list[dict[str, bytes | int]]]:
    """The rows of each shard, by its path within the folder."""
    found = {}
    for name in (shard_name(split, index, shards) for split in SPLITS for index in range(shards)):
        with open(out / name, "rb") as stream:
            found[name] = [features_of(record) for record in tfrecord.read_records(stream)]
    return found


def all_rows(out: Path) -> dict[str, dict[str, bytes | int]]:
    rows = [row for rows in read_shards(out).values() for row in rows]
    by_name = {row["filename"].decode(): row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def rejections(out: Path) -> dict[str, dict[str, str]]:
    lines = (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["filename"]: entry for entry in map(json.loads, lines)}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_image_lies_in_one_shard_with_its_own_bytes(tmp_path: Path) -> None:
    files = {**make_files(), "Yes/Straße 裂缝.png": picture(99, "PNG", (17, 11))}
    info, done_now = run(write_files(tmp_path / "src", files), tmp_path / "out")
    assert done_now
    rows = all_rows(tmp_path / "out")
    assert {name: row["encoded"] for name, row in rows.items()} == files
    for name, row in rows.items():
        assert row["sha256"].decode() == hashlib.sha256(files[name]).hexdigest()
        assert row["class/text"].decode() == name.split("/")[0]
        assert info.classes[row["class/label"]] == name.split("/")[0]
    png = rows["Yes/Straße 裂缝.png"]
    assert (png["format"], png["width"], png["height"]) == (b"PNG", 17, 11)
    assert rows["No/000.jpg"]["format"] == b"JPEG"
    assert info.classes == ("No", "Yes")
    assert info.rejected == 0
    assert rejections(tmp_path / "out") == {}
    assert info == read_dataset(str(tmp_path / "out"))
    assert (info.dimensions["minimum_width"], info.dimensions["maximum_height"]) == (17, 30)
    assert info.dimensions["mean_width"] == pytest.approx((24 * 40 + 17) / 25, abs=1e-3)


def test_counts_are_those_of_the_shards_and_rows_are_sorted(tmp_path: Path) -> None:
    info, _ = run(write_files(tmp_path / "src", make_files()), tmp_path / "out")
    counts = {split: dict.fromkeys(info.classes, 0) for split in SPLITS}
    for name, rows in read_shards(tmp_path / "out").items():
        keys = [(row["sha256"], row["filename"]) for row in rows]
        assert keys == sorted(keys)
        for row in rows:
            counts[name.split("/")[0]][row["class/text"].decode()] += 1
    assert info.counts == counts
    assert sum(info.count(split) for split in SPLITS) == 24


def test_bad_files_are_rejected_by_name_and_code(tmp_path: Path) -> None:
    bad = {
        "No/cut.jpg": picture(1)[:-200],
        "No/empty.jpg": b"",
        "Yes/text.jpg": b"this is a text, not an image",
    }
    folder = write_files(tmp_path / "src", {**make_files(), **bad})
    (folder / "Yes/dangling.jpg").symlink_to("nowhere.jpg")
    info, _ = run(folder, tmp_path / "out")
    found = rejections(tmp_path / "out")
    assert {name: entry["code"] for name, entry in found.items()} == {
        "No/cut.jpg": "truncated",
        "No/empty.jpg": "empty",
        "Yes/dangling.jpg": "unreadable",
        "Yes/text.jpg": "not_an_image",
    }
    assert all(set(entry) == {"filename", "class", "code", "reason"} and entry["reason"] for entry in found.values())
    assert found["Yes/text.jpg"]["class"] == "Yes"
    assert info.rejected == 4
    assert set(all_rows(tmp_path / "out")) == set(make_files())


def test_copies_are_kept_on_one_side_and_counted(tmp_path: Path) -> None:
    copies = {f"No/copy{index}.jpg": picture(1000 + index // 3) for index in range(30)}
    info, _ = run(write_files(tmp_path / "src", {**make_files(), **copies}), tmp_path / "out")
    assert info.duplicates == {"groups": 10, "surplus_files": 20}
    places: dict[bytes, set[str]] = {}
    for name, rows in read_shards(tmp_path / "out").items():
        for row in rows:
            places.setdefault(row["encoded"], set()).add(name.split("/")[0])
    assert all(len(splits) == 1 for splits in places.values())
    assert {splits.copy().pop() for splits in places.values()} == set(SPLITS)
    assert set(copies) <= set(all_rows(tmp_path / "out"))


def test_copies_under_two_labels_are_all_rejected_with_the_others_name(tmp_path: Path) -> None:
    conflict = dict.fromkeys(["No/a.jpg", "No/b.jpg", "Yes/c.jpg"], picture(500))
    info, _ = run(write_files(tmp_path / "src", {**make_files(), **conflict}), tmp_path / "out")
    found = rejections(tmp_path / "out")
    assert {name: (entry["code"], entry["reason"]) for name, entry in found.items()} == {
        "No/a.jpg": ("conflict", "same bytes as Yes/c.jpg, which is labelled Yes"),
        "No/b.jpg": ("conflict", "same bytes as Yes/c.jpg, which is labelled Yes"),
        "Yes/c.jpg": ("conflict", "same bytes as No/a.jpg, which is labelled No"),
    }
    assert info.conflicts == {"groups": 1, "files": 3}
    assert info.duplicates == {"groups": 0, "surplus_files": 0}
    assert set(all_rows(tmp_path / "out")) == set(make_files())


def test_a_file_that_changed_since_it_was_checked_is_rejected(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": picture(1), "b.jpg": picture(2), "c.jpg": picture(3)})
    checked = [
        steps.check_image(SourceImage(str(tmp_path / name), "No", f"No/{name}")) for name in ("a.jpg", "b.jpg", "c.jpg")
    ]
    assert all(isinstance(each, ImageMetadata) for each in checked)
    (tmp_path / "a.jpg").write_bytes(picture(4))
    (tmp_path / "b.jpg").unlink()
    config = PreparationConfig("src", str(tmp_path / "out"), shards=1)
    report = steps.write_shard((("train", 0), {"images": checked}), config, ("No", "Yes"))
    assert {each.filename: each.code for each in report.rejections} == {"No/a.jpg": "changed", "No/b.jpg": "unreadable"}
    with open(tmp_path / "out" / shard_name("train", 0, 1), "rb") as stream:
        assert [features_of(record)["filename"] for record in tfrecord.read_records(stream)] == [b"No/c.jpg"]


def test_the_split_follows_the_ratios_and_the_shards_are_even() -> None:
    config = PreparationConfig("src", "out", split=(60, 20, 20), shards=4)
    places = [assign(hashlib.sha256(bytes([i % 256, i // 256])).hexdigest(), config) for i in range(2000)]
    shares = Counter(split for split, _ in places)
    # Four standard deviations of a binomial share with n = 2000 are 0.044 and 0.036.
    assert shares["train"] / 2000 == pytest.approx(0.6, abs=0.044)
    assert shares["val"] / 2000 == pytest.approx(0.2, abs=0.036)
    assert shares["test"] / 2000 == pytest.approx(0.2, abs=0.036)
    for split in SPLITS:
        spread = Counter(index for name, index in places if name == split)
        assert set(spread) == set(range(4))
        assert min(spread.values()) > 0.6 * shares[split] / 4


def test_seed_and_ratios_decide_the_split_and_only_they() -> None:
    hashes = [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)]
    config = PreparationConfig("src", "out", split=(60, 20, 20), shards=4)
    first = [assign(each, config) for each in hashes]
    assert first == [assign(each, dataclasses.replace(config, source="x", out="y", split=(6, 2, 2))) for each in hashes]
    assert first != [assign(each, dataclasses.replace(config, seed=1)) for each in hashes]
    # A larger training share only adds to it.
    wider = [assign(each, dataclasses.replace(config, split=(80, 10, 10))) for each in hashes]
    assert all(after[0] == "train" for before, after in zip(first, wider, strict=True) if before[0] == "train")
    assert len([split for split, _ in wider if split == "train"]) > len(
        [split for split, _ in first if split == "train"]
    )


def test_images_added_later_move_none_of_the_old_ones(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", make_files(24))
    run(folder, tmp_path / "out")
    before = {row["filename"]: name for name, rows in read_shards(tmp_path / "out").items() for row in rows}
    write_files(folder, make_files(60))
    info, _ = run(folder, tmp_path / "out", overwrite=True)
    after = {row["filename"]: name for name, rows in read_shards(tmp_path / "out").items() for row in rows}
    assert len(after) == sum(info.count(split) for split in SPLITS) == 60
    assert before == {name: after[name] for name in before}


def test_two_preparations_of_the_same_images_are_equal_to_the_byte(tmp_path: Path) -> None:
    files = make_files()
    run(write_files(tmp_path / "a", files), tmp_path / "out_a")
    run(write_files(tmp_path / "b", dict(reversed(files.items()))), tmp_path / "out_b")
    trees = [tree(tmp_path / "out_a"), tree(tmp_path / "out_b")]
    infos = [json.loads(each.pop("dataset.json")) for each in trees]
    assert trees[0] == trees[1]
    assert infos[0]["fingerprint"] == infos[1]["fingerprint"]
    assert set(trees[0]) == {*(shard_name(split, i, 2) for split in SPLITS for i in range(2)), "rejected.jsonl"}


def test_the_fingerprint_follows_content_classes_split_and_seed_not_names(tmp_path: Path) -> None:
    files = make_files()
    plain, _ = run(write_files(tmp_path / "plain", files), tmp_path / "out1")
    renamed = {name.replace("/", "/other-"): content for name, content in files.items()}
    assert run(write_files(tmp_path / "renamed", renamed), tmp_path / "out2")[0].fingerprint == plain.fingerprint
    swapped = {name.replace("No/", "Na/"): content for name, content in files.items()}
    others = [
        run(write_files(tmp_path / "swapped", swapped), tmp_path / "out3"),
        run(tmp_path / "plain", tmp_path / "out4", seed=1),
        run(tmp_path / "plain", tmp_path / "out5", split=(70, 20, 10)),
    ]
    assert len({plain.fingerprint, *(info.fingerprint for info, _ in others)}) == 4


@pytest.mark.parametrize("split", [(60, 20, 20), (70, 20, 10), (70, 24, 6), (1, 1, 1)])
def test_finished_data_is_left_alone(tmp_path: Path, split: tuple[float, float, float]) -> None:
    folder = write_files(tmp_path / "src", make_files())
    run(folder, tmp_path / "out", split=split)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    info, done_now = run(folder, tmp_path / "out", split=split)
    assert not done_now
    assert info == read_dataset(str(tmp_path / "out"))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (False, {"seed": 1}, "another split, seed or number of shards"),
        (False, {"split": (70, 20, 10)}, "another split, seed or number of shards"),
        (False, {"shards": 3}, "another split, seed or number of shards"),
        (True, {}, "another source, or it changed since"),
    ],
)
def test_finished_data_of_another_config_or_source_is_refused_unless_overwritten(
    tmp_path: Path, change: bool, options: dict[str, object], message: str
) -> None:
    folder = write_files(tmp_path / "src", make_files())
    run(folder, tmp_path / "out")
    before = tree(tmp_path / "out")
    if change:
        write_files(folder, {"No/new.jpg": picture(77)})
    with pytest.raises(InputError, match=message):
        run(folder, tmp_path / "out", **options)
    assert tree(tmp_path / "out") == before
    info, done_now = run(folder, tmp_path / "out", overwrite=True, **options)
    assert done_now
    shards = info.shards
    assert len(list((tmp_path / "out").rglob("*.tfrecord"))) == 3 * shards


def test_a_lost_shard_is_noticed(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", make_files())
    run(folder, tmp_path / "out")
    (tmp_path / "out" / shard_name("val", 1, 2)).unlink()
    with pytest.raises(InputError, match=r"val-00001-of-00002\.tfrecord is missing"):
        run(folder, tmp_path / "out")


def test_a_folder_that_is_not_ours_is_refused_untouched(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", make_files())
    write_files(tmp_path / "out", {"train/train-00000-of-00002.tfrecord": b"mine", "thesis.doc": b"mine"})
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty and not made by prepare"):
            run(folder, tmp_path / "out", overwrite=overwrite)
    assert tree(tmp_path / "out") == {"train/train-00000-of-00002.tfrecord": b"mine", "thesis.doc": b"mine"}
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run(folder, tmp_path / "file")


def test_other_files_in_our_folder_survive_overwriting(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", make_files())
    run(folder, tmp_path / "out")
    own = {"notes.txt": b"mine", "train/mine.tfrecord": b"mine", "_prepare/mine.json": b"mine"}
    write_files(tmp_path / "out", own)
    run(folder, tmp_path / "out", overwrite=True, shards=1)
    left = tree(tmp_path / "out")
    assert own.items() <= left.items()
    assert len(left) == len(own) + 3 + 2


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", make_files())
    with locked(str(tmp_path / "out")), pytest.raises(InputError, match="another prepare is writing"):
        run(folder, tmp_path / "out")
    assert run(folder, tmp_path / "out")[1]


def test_what_a_killed_run_left_is_cleaned_and_done_again(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "src", make_files()), tmp_path / "out"
    command = [sys.executable, "-m", "jobs.prepare", "--source", source, "--out", out, "--shards", "2000"]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("*/*.tfrecord")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert list(out.glob("*/*.tfrecord"))
    with pytest.raises(InputError, match=r"run python -m jobs\.prepare first"):
        read_dataset(str(out))
    assert run(source, out)[1]
    run(source, tmp_path / "clean")
    assert tree(out) == tree(tmp_path / "clean")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_exit_code_and_no_rubbish(tmp_path: Path, number: int, code: int) -> None:
    write_files(tmp_path / "src", make_files())
    archive = shutil.make_archive(str(tmp_path / "a"), "tar", tmp_path / "src")
    (tmp_path / "temporary").mkdir()
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.prepare", "--source", archive, "--out", out, "--shards", "2000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("*/*.tfrecord")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        assert list((tmp_path / "temporary").iterdir())
        process.send_signal(number)
        _, log = process.communicate(timeout=60)
    assert process.returncode == code, log
    assert log.splitlines()[-1].startswith("crackscan: ")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (out / "dataset.json").exists()


def test_where_nothing_can_be_used_no_data_is_finished(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", {"No/1.jpg": b"x", "Yes/1.jpg": b"y"})
    with pytest.raises(InputError, match=r"none of the 2 images .*rejected\.jsonl"):
        run(folder, tmp_path / "out")
    assert len(rejections(tmp_path / "out")) == 2
    with pytest.raises(InputError):
        read_dataset(str(tmp_path / "out"))


def test_after_nothing_could_be_used_the_folder_can_be_used_again(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", {"No/1.jpg": b"x", "Yes/1.jpg": b"y"})
    with pytest.raises(InputError, match="none of the 2 images"):
        run(folder, tmp_path / "out")
    write_files(folder, make_files())
    assert run(folder, tmp_path / "out")[1]


def test_an_archive_is_prepared_once_whatever_its_place(tmp_path: Path) -> None:
    write_files(tmp_path / "src", make_files())
    archive = shutil.make_archive(str(tmp_path / "a"), "gztar", tmp_path / "src")
    info, _ = run(archive, tmp_path / "out")
    assert info.source_sha256 == hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    assert run(shutil.copy(archive, tmp_path / "b"), tmp_path / "out") == (info, False)
    assert run(tmp_path / "src", tmp_path / "other")[0].fingerprint == info.fingerprint


@pytest.mark.parametrize("text", ["60/20", "60/20/20/0", "60-20-20", "a/b/c", ""])
def test_a_split_is_three_numbers(text: str) -> None:
    with pytest.raises(InputError, match="60/20/20"):
        parse_split(text)


@pytest.mark.parametrize(
    "options",
    [
        {"split": (60, 20, 0)},
        {"split": (60, -20, 20)},
        {"split": (float("nan"), 1, 1)},
        {"split": (float("inf"), 1, 1)},
        {"shards": 0},
        {"shards": 10_001},
        {"out": "gs://bucket/data"},
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        PreparationConfig(**{"source": "src", "out": "out", **options})


def test_copies_are_judged_whatever_their_order() -> None:
    images = [SourceImage("p", name.split("/")[0], name) for name in ("No/b", "No/a", "Yes/c")]
    copies = [ImageMetadata(image, "00", "JPEG", 1, 1) for image in images]
    judged = [list(steps.judge_copies(("00", order))) for order in (copies, copies[::-1])]
    assert judged[0] == judged[1]
    assert all(isinstance(each, Rejection) for each in judged[0])
    assert [each.image.filename for each in steps.judge_copies(("00", copies[:2]))] == ["No/a", "No/b"]


def test_worker_processes_give_the_same_data(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", make_files())
    run(folder, tmp_path / "one")
    command = [sys.executable, "-m", "jobs.prepare", "--source", folder, "--out", tmp_path / "two", "--shards", "2"]
    command += ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_job_prints_a_summary_and_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {**make_files(), "No/cut.jpg": picture(1)[:-200], "No/notes.txt": b"x", "No/copy.jpg": picture(0)}
    source, out = write_files(tmp_path / "src", files), tmp_path / "out"
    arguments = ["--source", str(source), "--out", str(out), "--shards", "2"]
    assert job.main(arguments) == 0
    first = capsys.readouterr()
    assert first.out.splitlines()[-1] == f"next: python -m jobs.train --data {out}"
    assert "1 surplus files in 1 groups" in first.out
    assert "rejected: 1 " in first.out
    assert "skipped: 1 .txt" in first.out
    assert "26/26" in first.err
    assert "6/6" in first.err
    assert job.main(arguments) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "nothing to do" in second.err


def test_the_command_refuses_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.prepare", "--source", tmp_path / "nowhere", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if "nowhere" in line]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_teaches_without_loading_beam(tmp_path: Path) -> None:
    program = "import sys, jobs.prepare as p; p.build_parser().print_help(); sys.exit('apache_beam' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert "workspace/data" in done.stdout


def test_tensorflow_reads_the_shards(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    files = make_files()
    info, _ = run(write_files(tmp_path / "src", files), tmp_path / "out")
    spec = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/filename": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    paths = [path for split in SPLITS for path in info.shard_paths(split)]
    found = {}
    for record in tf.data.TFRecordDataset(paths):
        example = tf.io.parse_single_example(record, spec)
        name = example["image/filename"].numpy().decode()
        found[name] = example["image/encoded"].numpy()
        assert info.classes[int(example["image/class/label"])] == name.split("/")[0]
        assert tf.io.decode_jpeg(example["image/encoded"]).shape == (30, 40, 3)
    assert found == files
