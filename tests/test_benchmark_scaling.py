import json

import pytest
from helpers import write_image_folder

from benchmarks import scaling
from benchmarks.scaling import Measurement, chosen_cases, cut, linked, to_markdown
from model.errors import InputError
from pipelines import tfrecord


def write_shards(root):
    (root / "test").mkdir(parents=True)
    for shard in range(3):
        content = b"".join(tfrecord.frame(b"%d-%d" % (shard, n)) for n in range(4))
        (root / "test" / f"{shard}.tfrecord").write_bytes(content)


def records(path):
    with open(path, "rb") as stream:
        return list(tfrecord.read_records(stream))


def test_inputs_hold_the_same_images(tmp_path):
    write_shards(tmp_path / "shards")
    linked(tmp_path / "shards", tmp_path / "long", 2)
    assert len(list((tmp_path / "long").rglob("*.tfrecord"))) == 6
    cut(tmp_path / "shards", tmp_path / "tiny", 7, 2)
    found = [record for path in sorted((tmp_path / "tiny").iterdir()) for record in records(path)]
    all_records = [b"%d-%d" % (shard, n) for shard in range(3) for n in range(4)]
    assert found == all_records + all_records[:2]


def test_ratios_are_of_what_was_measured():
    found = {
        name: [Measurement(name, 1, images, 1, whole, cpu, whole - 4.0, 1.5, peak)]
        for name, images, whole, cpu, peak in (
            ("once", 100, 14.0, 20.0, 300.0),
            ("ten-times", 1000, 112.0, 190.0, 306.0),
            ("tiny", 20, 9.0, 12.0, 300.0),
            ("tiny-images", 20, 8.0, 10.0, 300.0),
            ("start", 8, 5.0, 5.0, 200.0),
        )
    }
    page = to_markdown(found, ["a fact"])
    for row in ("over that | 1.020 |", "times that | 0.800 |", "| 0.950 |", "images | 1.125 |", "report | 1.250 |"):
        assert row in page
    assert "1.50 (1.50 to 1.50)" in page
    partial = to_markdown({"once": found["once"]}, [])
    assert "| once | 100 |" in partial
    assert "ten" not in partial


def test_what_was_measured_is_not_measured_again(tmp_path, tiny_bundle, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_image_folder(tmp_path / "images", 24)
    arguments = ["--images", str(tmp_path / "images"), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "out")]
    scaling.main([*arguments, "--cases", "once"])
    first = capsys.readouterr()
    (stored,) = (tmp_path / "out" / "rounds").glob("*.json")
    values = json.loads(stored.read_text())
    assert values["images"] == 24
    assert 0 < values["first_seconds"] < values["whole_seconds"]
    assert 100 < values["peak_mb"] < 2000
    scaling.main([*arguments, "--cases", "once"])
    again = capsys.readouterr()
    assert again.out == first.out
    assert "runs" in first.err
    assert "runs" not in again.err


def test_an_unknown_case_is_named():
    with pytest.raises(InputError, match="no case 'twice'"):
        chosen_cases("once, twice")
