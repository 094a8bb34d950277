"""Decoded pixels for training: the same as inference sees, in the shards' order, cached, and never half."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model import dataset
from model.dataset import (
    cache_folder,
    decode_split,
    distribute,
    global_batches,
    is_cached,
    load_split,
    sample_split,
)
from model.dataset_info import SPLITS, read_dataset
from model.errors import InputError
from model.preprocess import preprocess
from pipelines import tfrecord

SIZE = 24


@pytest.fixture
def info(tiny_data, tmp_path):
    """Prepared data of one's own, with an empty cache."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder, ignore=shutil.ignore_patterns("_cache"))
    return read_dataset(str(folder))


def records(info, name: str) -> list[bytes]:
    found = []
    for path in info.shard_paths(name):
        with open(path, "rb") as stream:
            found += tfrecord.read_records(stream)
    return found


def images_and_labels(info, name: str) -> tuple[list[bytes], list[int]]:
    examples = [tfrecord._Example.FromString(record).features.feature for record in records(info, name)]
    return (
        [example["image/encoded"].bytes_list.value[0] for example in examples],
        [example["image/class/label"].int64_list.value[0] for example in examples],
    )


def rewrite_shard(path: str, keep: int, more: tuple[bytes, ...] = ()) -> None:
    with open(path, "rb") as stream:
        kept = list(tfrecord.read_records(stream))[:keep]
    Path(path).write_bytes(b"".join(map(tfrecord.frame, [*kept, *more])))


def must_not_decode(monkeypatch) -> None:
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(dataset, "preprocess", fail)


@pytest.mark.parametrize("name", SPLITS)
def test_pixels_are_those_of_inference_to_the_bit_and_in_the_shards_order(info, name):
    encoded, labels = images_and_labels(info, name)
    split = load_split(info, name, SIZE)
    assert len(encoded) == info.count(name) > 10
    np.testing.assert_array_equal(split.pixels, np.stack([preprocess(image, SIZE).pixels for image in encoded]))
    assert split.labels.tolist() == labels
    assert {info.classes[label] for label in labels} == {"Negative", "Positive"}


def test_the_second_time_nothing_is_decoded_not_even_read(info, monkeypatch):
    assert not is_cached(info, "train", SIZE)
    steps = []
    first = load_split(info, "train", SIZE, steps.append)
    assert sum(steps) == info.count("train")
    assert is_cached(info, "train", SIZE)
    must_not_decode(monkeypatch)
    for path in info.shard_paths("train"):
        Path(path).unlink()
    second = load_split(info, "train", SIZE)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_the_cache_is_mapped_from_disk_and_cannot_be_written_to(info):
    split = load_split(info, "val", SIZE)
    assert isinstance(split.pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        split.pixels[0] = 0


def test_other_data_and_other_sizes_have_a_cache_of_their_own(info):
    load_split(info, "val", SIZE)
    changed = dataclasses.replace(info, fingerprint=hashlib.sha256(b"other").hexdigest())
    assert not is_cached(changed, "val", SIZE)
    assert not is_cached(info, "val", SIZE + 1)
    assert not is_cached(info, "test", SIZE)
    assert load_split(info, "val", SIZE + 1).pixels.shape == (info.count("val"), SIZE + 1, SIZE + 1, 3)
    # What was cached before is not mistaken for the changed data.
    rewrite_shard(info.shard_paths("val")[0], keep=0)
    with pytest.raises(InputError, match="do not hold"):
        load_split(changed, "val", SIZE)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_shard_that_ends_early_is_refused_and_leaves_no_cache(info, kept):
    rewrite_shard(info.shard_paths("train")[1], keep=kept)
    with pytest.raises(InputError, match=f"the train shards do not hold the {info.count('train')} images"):
        load_split(info, "train", SIZE)
    assert not is_cached(info, "train", SIZE)
    assert list(cache_folder(info).iterdir()) == []


def test_a_shard_with_more_images_than_said_is_refused(info):
    path = info.shard_paths("val")[1]
    rewrite_shard(path, keep=10_000, more=(records(info, "val")[0],))
    with pytest.raises(InputError, match="do not hold"):
        load_split(info, "val", SIZE)


def test_a_shard_cut_inside_a_record_is_refused(info):
    path = Path(info.shard_paths("val")[0])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot read the prepared shards: .*; run jobs\.prepare again"):
        load_split(info, "val", SIZE)


def test_a_shard_with_a_changed_byte_is_refused(info):
    path = Path(info.shard_paths("val")[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read the prepared shards"):
        load_split(info, "val", SIZE)


def test_a_missing_shard_is_refused_by_name(info):
    path = Path(info.shard_paths("val")[1])
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        load_split(info, "val", SIZE)


def test_an_unreadable_image_in_a_shard_is_refused(info):
    broken = tfrecord.encode_example({"image/encoded": b"no image", "image/class/label": 0})
    path = info.shard_paths("val")[0]
    with open(path, "rb") as stream:
        count = len(list(tfrecord.read_records(stream)))
    rewrite_shard(path, keep=count - 1, more=(broken,))
    with pytest.raises(InputError, match="the prepared val shards hold an unreadable image"):
        load_split(info, "val", SIZE)


def test_a_damaged_cache_is_named_rather_than_used(info):
    load_split(info, "val", SIZE)
    pixels, labels = (cache_folder(info) / f"val-{SIZE}-{part}.npy" for part in ("pixels", "labels"))
    whole = pixels.read_bytes()
    for content in (whole[:-1000], b""):
        pixels.write_bytes(content)
        with pytest.raises(InputError, match=f"the cache {cache_folder(info)} is damaged"):
            load_split(info, "val", SIZE)
    pixels.write_bytes(whole)
    labels.write_bytes(labels.read_bytes()[:50])
    with pytest.raises(InputError, match="is damaged"):
        load_split(info, "val", SIZE)


def test_what_a_killed_run_left_unfinished_is_not_taken_for_a_cache(info, monkeypatch):
    expected = load_split(info, "val", SIZE)
    # As after a kill: the pixels are there, half, and the labels are not.
    (cache_folder(info) / f"val-{SIZE}-labels.npy").unlink()
    pixels = cache_folder(info) / f"val-{SIZE}-pixels.npy"
    pixels.rename(pixels.with_name(f".123-{pixels.name}"))
    again = load_split(info, "val", SIZE)
    np.testing.assert_array_equal(again.pixels, expected.pixels)
    assert is_cached(info, "val", SIZE)


def test_a_cache_that_cannot_be_made_is_refused(info):
    (Path(info.data) / "_cache").write_text("in the way")
    with pytest.raises(InputError, match="cannot make the cache"):
        load_split(info, "val", SIZE)


def test_decoding_gives_chunks_in_order(info):
    parts = [labels for _, labels in decode_split(info, "train", SIZE)]
    assert len(parts) == 3
    assert np.concatenate(parts).tolist() == images_and_labels(info, "train")[1]


def fed(strategy, images, indices):
    """What one replica gets: per batch the images' numbers, which are also their labels, and their weights."""
    numbers = np.arange(images)
    pixels = np.broadcast_to(numbers[:, None, None, None], (images, 4, 4, 3)).astype(np.uint8)
    batches = []
    for shown, labels, weights in distribute(strategy, pixels, numbers, indices):
        assert (shown.numpy() == labels.numpy()[:, None, None, None]).all()
        batches.append((labels.numpy().tolist(), weights.numpy()))
    return batches


def test_global_batches_hold_every_image_once_in_order_and_pad_the_last():
    indices = global_batches(20, 8)
    assert indices.shape == (3, 8)
    assert indices.ravel().tolist() == [*range(20), -1, -1, -1, -1]


def test_an_epoch_has_an_order_of_its_own_and_the_same_one_each_time():
    orders = [global_batches(20, 8, (seed, epoch)).ravel()[:20].tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(20)) and order != list(range(20)) for order in orders)
    assert global_batches(20, 8, (1, 2)).ravel()[:20].tolist() == orders[3]


def test_a_replica_is_fed_every_image_with_its_label_and_padding_of_weight_zero():
    batches = fed(tf.distribute.get_strategy(), 20, global_batches(20, 8))
    assert [labels[: 8 if index < 2 else 4] for index, (labels, _) in enumerate(batches)] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]
    for index, (_, weights) in enumerate(batches):
        np.testing.assert_allclose(weights, [1 / 8] * 8 if index < 2 else [1 / 4] * 4 + [0] * 4)


def test_a_sample_is_the_first_images_of_a_split(info):
    whole = load_split(info, "train", SIZE)
    sample = sample_split(info, "train", SIZE, 40)
    assert (len(sample.labels), len(whole.labels)) == (40, 75)
    np.testing.assert_array_equal(sample.pixels, whole.pixels[:40])
    np.testing.assert_array_equal(sample.labels, whole.labels[:40])
    assert len(sample_split(info, "train", SIZE, 1000).labels) == 75
