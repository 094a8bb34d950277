"""What dataset.json gives to a reader, and how it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from model.dataset_info import SPLITS, DatasetInfo, read_dataset, shard_name
from model.errors import InputError


def make_info(data: str) -> DatasetInfo:
    return DatasetInfo(
        data=data,
        classes=("Negative", "Übrig"),
        counts={split: {"Negative": 3, "Übrig": index} for index, split in enumerate(SPLITS)},
        split=(0.6, 0.2, 0.2),
        seed=7,
        shards=2,
        duplicates={"groups": 1, "surplus_files": 2},
        conflicts={"groups": 0, "files": 0},
        rejected=0,
        skipped={".txt": 1},
        dimensions={"mean_width": 227.0},
        source="photos",
        source_sha256=None,
        listing_digest="ab",
        created_by="crackscan 1",
        fingerprint="cd",
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = make_info(str(tmp_path))
    (tmp_path / "dataset.json").write_text(info.to_json(), encoding="utf-8")
    assert read_dataset(str(tmp_path)) == info


def test_a_moved_folder_knows_its_new_place(tmp_path: Path) -> None:
    info = make_info("/elsewhere")
    (tmp_path / "dataset.json").write_text(info.to_json(), encoding="utf-8")
    assert read_dataset(str(tmp_path)) == dataclasses.replace(info, data=str(tmp_path))


def test_counts_and_shards_of_a_split() -> None:
    info = make_info("data")
    assert [info.count(split) for split in SPLITS] == [3, 4, 5]
    assert info.shard_paths("val") == [
        "data/val/val-00000-of-00002.tfrecord",
        "data/val/val-00001-of-00002.tfrecord",
    ]


def test_a_later_version_may_add_keys(tmp_path: Path) -> None:
    text = json.dumps({**json.loads(make_info("x").to_json()), "new_key": [1]})
    assert DatasetInfo.from_json("x", text) == make_info("x")


@pytest.mark.parametrize("missing", ["nothing", "data"])
def test_unprepared_data_says_what_to_run(tmp_path: Path, missing: str) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"run python -m jobs\.prepare first"):
        read_dataset(str(tmp_path / missing))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"train"', '"training"'),
        lambda text: text.replace("0.6,", ""),
    ],
)
def test_damaged_text_is_refused(tmp_path: Path, damage) -> None:
    text = make_info("x").to_json()
    assert damage(text) != text
    (tmp_path / "dataset.json").write_text(damage(text), encoding="utf-8")
    with pytest.raises(InputError, match=r"dataset\.json is damaged"):
        read_dataset(str(tmp_path))


def test_only_the_three_splits_have_shards() -> None:
    with pytest.raises(InputError, match="training"):
        shard_name("training", 0, 1)
