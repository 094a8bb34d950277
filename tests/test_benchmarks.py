import dataclasses
import json
import os
import sys
import time

import pytest

from benchmarks import environments, inference
from benchmarks.answers import compare, read_answers
from benchmarks.contenders import LIMIT, OURS, PEER, PEERS, Contender, contenders
from benchmarks.environments import InstallError, cache_folder, last_line, peer_python
from benchmarks.images import ImageSet, choose_images
from benchmarks.plot import draw
from benchmarks.process import MIB, run_measured
from benchmarks.rounds import Result, open_results, run_rounds, steady_work
from benchmarks.table import of_the_limit, summarise, to_markdown
from model.errors import InputError
from model.metrics import MetricCounts
from model.spec import ModelSpec
from pipelines import storage
from pipelines.run import Marker, marker_path, part_path

SPEC = ModelSpec(("a", "b"), "b", 32, 0.5, "small_cnn", "small", 4, "")
IMAGES = ImageSet("images", "shards", 2, "0" * 64)

ANSWERING = """
import os, sys
from benchmarks.task import Task, report, write_answers
task = Task.from_arguments()
write_answers(task, [task.images + "/a/1.jpg", task.images + "/b/2.jpg"], [[0.9, 0.1], [0.2, 0.8]])
with open(os.path.join(task.shards, "calls"), "a") as stream:
    stream.write("x")
report(2, 0.5)
"""


@dataclasses.dataclass(frozen=True)
class Scripted(Contender):
    """A contender that is a few lines of Python."""

    script: str = ANSWERING

    def command(self, task):
        if self.script == "install":
            raise InstallError("no such package")
        return [sys.executable, "-c", self.script, task.to_argument()]


def scripted(name, script=ANSWERING, kind=PEER):
    return Scripted(name, name, kind, "none", script=script)


def result(contender, number, rate, whole=1.0, **values):
    return Result(contender, number, images=100, seconds=100 / rate, whole_seconds=whole, **values)


def test_images_are_spread_evenly_over_the_sorted_ones(tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.png", "b/notes.txt", "readme.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in choose_images(tmp_path, None)] == ["1.jpg", "2.jpg", "3.jpg", "4.png"]
    assert [path.name for path in choose_images(tmp_path, 2)] == ["1.jpg", "3.jpg"]
    assert len(choose_images(tmp_path, 9)) == 4
    with pytest.raises(InputError, match="subfolder per class"):
        choose_images(tmp_path / "a", None)


def test_contenders_begin_with_ours_and_know_their_names():
    assert [row.name for row in contenders(["litert"], "none")] == ["ours-litert", "bare-litert", "engine-litert"]
    assert [row.name for row in contenders(["litert"], "spark, keras")][3:] == ["keras", "spark"]
    assert contenders(["litert"], "all")[3:] == list(PEERS)
    with pytest.raises(InputError, match="no peer 'dask'"):
        contenders(["litert"], "dask")
    with pytest.raises(InputError, match="no engine 'auto'"):
        contenders(["auto"], "all")


@pytest.mark.parametrize("name", sorted({peer.environment for peer in PEERS if peer.environment}))
def test_every_requirement_of_a_peer_is_pinned(name):
    lines = (environments.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    assert all(line.startswith("#") or "==" in line for line in lines)
    assert any(line.startswith("tensorflow==") for line in lines)


def test_an_environment_that_cannot_be_installed_tells_pips_last_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    (tmp_path / "odd.txt").write_text("./no-such-package\n")
    monkeypatch.setattr(environments, "INSTALL", ("-c", "import sys; print('no such package'); sys.exit(1)"))
    with pytest.raises(InstallError, match=r"^no such package$"):
        peer_python("odd")
    assert not list(cache_folder().glob("*/.installed"))


def test_last_line_is_the_last_that_says_something():
    assert last_line("one\n  two   three \n\n") == "two three"
    assert last_line("\n") == "no output"


def test_a_measured_process_has_its_time_memory_and_exit_code(tmp_path):
    script = "import time; held = b'x' * 200_000_000; time.sleep(1.2); print(len(held)); raise SystemExit(3)"
    measured = run_measured(
        [sys.executable, "-c", script], os.environ, tmp_path, tmp_path / "out", tmp_path / "log", 60.0
    )
    assert (measured.code, measured.timed_out) == (3, False)
    assert (tmp_path / "out").read_text() == "200000000\n"
    assert 1.2 < measured.seconds < 30
    assert 200e6 / MIB < measured.peak_process_mb < 300
    assert measured.peak_total_mb == measured.peak_process_mb


def test_a_process_that_takes_too_long_is_ended_with_its_children(tmp_path):
    script = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    )
    started = time.perf_counter()
    measured = run_measured(
        [sys.executable, "-c", script], os.environ, tmp_path, tmp_path / "out", tmp_path / "log", 1.0
    )
    assert measured.timed_out
    assert measured.code == -9
    assert time.perf_counter() - started < 20
    child = int((tmp_path / "out").read_text())
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_answers_are_compared_on_the_images_that_both_have(tmp_path):
    lines = [{"path": "/x/a/1.jpg", "probabilities": [0.4, 0.6]}, {"path": "b/2.jpg", "probabilities": [0.1, 0.9]}]
    (tmp_path / "part.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    theirs = read_answers(tmp_path)
    assert theirs == {"a/1.jpg": [0.4, 0.6], "b/2.jpg": [0.1, 0.9]}
    compared = compare({"a/1.jpg": [0.6, 0.4], "b/2.jpg": [0.1, 0.9], "b/3.jpg": [1.0, 0.0]}, theirs, SPEC)
    assert (compared.images, compared.other_class) == (2, 1)
    assert compared.largest_difference == pytest.approx(0.2)
    assert compare({}, theirs, SPEC).images == 0


def test_rounds_are_stored_failures_are_rows_and_a_restart_goes_on(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    images = dataclasses.replace(IMAGES, shards=str(shards))
    other = ANSWERING.replace("[0.9, 0.1]", "[0.3, 0.7]")
    rows = [
        scripted("first"),
        scripted("other", other),
        scripted("broken", "raise ValueError('not today')"),
        scripted("silent", "pass"),
        scripted("absent", "install"),
    ]
    out = tmp_path / "out"
    open_results(out, {"images": "one"})
    results = run_rounds(out, rows, 2, images, "bundle", SPEC, 60.0)
    assert [(each.contender, each.round, each.images, each.other_class) for each in results if not each.error] == [
        ("first", 1, 2, 0),
        ("other", 1, 2, 1),
        ("first", 2, 2, 0),
        ("other", 2, 2, 1),
    ]
    errors = {each.contender: each.error for each in results if each.round == 1 and each.error}
    assert errors == {
        "broken": "exit code 1: ValueError: not today",
        "silent": errors["silent"],
        "absent": "cannot be installed: no such package",
    }
    assert errors["silent"].startswith("no usable result")
    assert (shards / "calls").read_text() == "xxxx"

    again = run_rounds(out, [rows[0], dataclasses.replace(rows[2], script=ANSWERING)], 2, images, "bundle", SPEC, 60.0)
    assert not any(each.error for each in again)
    assert (shards / "calls").read_text() == "xxxxxx"


def test_results_of_other_images_are_not_mixed(tmp_path):
    open_results(tmp_path / "out", {"images": "one"})
    open_results(tmp_path / "out", {"images": "one"})
    with pytest.raises(InputError, match="another bundle"):
        open_results(tmp_path / "out", {"images": "two"})
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match="folder of its own"):
        open_results(tmp_path, {"images": "one"})


def test_steady_work_goes_from_the_first_image_to_the_last_marker(tmp_path):
    run = str(tmp_path)
    counts = MetricCounts.zero(SPEC.classes)
    units = [("first", 10, 2.0, 1000.0, 1000.5), ("empty", 0, 0.1, None, 1001.0), ("last", 5, 1.5, 1003.0, 1003.2)]
    for unit, predictions, seconds, part, committed in units:
        values = {field.name: 0 for field in dataclasses.fields(Marker)}
        values |= {"unit": unit, "source": unit, "images": predictions, "predictions": predictions}
        values |= {"seconds": seconds, "counts": counts, "files": {}, "failure_codes": {}, "shard_errors": {}}
        marker = Marker(**values)
        storage.put(marker_path(run, unit), marker.to_bytes())
        os.utime(marker_path(run, unit), (committed, committed))
        if part:
            path = storage.join(run, part_path("predictions", unit))
            storage.put(path, b"")
            os.utime(path, (part, part))
    images, seconds = steady_work(run)
    assert images == 15
    assert seconds == pytest.approx(1003.2 - 998.0)


ROWS = [
    Contender("ours-litert", "crackscan, litert", OURS, "jobs.infer", "litert"),
    Contender("bare-litert", "bare loop, litert", LIMIT, "benchmarks.bare", "litert"),
    Contender("keras", "Keras", PEER, "benchmarks.peers.keras_predict"),
    Contender("ray", "Ray Data", PEER, "benchmarks.peers.ray_data", environment="ray"),
]
RESULTS = [
    *(result("ours-litert", number, rate, 2.0, compared=100) for number, rate in enumerate((100.0, 50.0, 110.0), 1)),
    *(result("bare-litert", number, rate) for number, rate in enumerate((100.0, 100.0, 100.0), 1)),
    *(result("keras", number, rate, 5.0, other_class=2) for number, rate in enumerate((25.0, 10.0, 22.0), 1)),
    *(Result("ray", number, error="cannot be | installed") for number in (1, 2, 3)),
]


def test_medians_are_over_rounds_and_ratios_within_a_round():
    ours, bare, keras, ray = summarise(ROWS, RESULTS)
    assert (ours["images_per_second"], ours["lowest"], ours["highest"]) == pytest.approx((100.0, 50.0, 110.0))
    assert ours["ours_faster_by"] == ours["ours_shorter_by"] == 1.0
    assert bare["ours_faster_by"] == pytest.approx(1.0)
    assert keras["ours_faster_by"] == pytest.approx(5.0)
    assert keras["ours_shorter_by"] == pytest.approx(2.5)
    assert ray["error"] == "cannot be | installed"
    assert of_the_limit(ROWS, RESULTS) == {"litert": {"bare loop, litert": pytest.approx(1.0)}}


def test_page_and_plot_show_every_contender(tmp_path):
    summaries = summarise(ROWS, RESULTS)
    page = to_markdown(summaries, of_the_limit(ROWS, RESULTS), ["a fact"])
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count(" | ") for line in table[2:5]}) == 1
    assert table[4].startswith("| Keras | 22 | 10 to 25 | 5.00 x | 5.0 | 2.50 x |")
    assert "- **Ray Data** failed: cannot be \\| installed" in page
    assert "- litert: 1.00 of the bare loop, litert" in page
    draw(summaries, RESULTS, "title", [tmp_path / "plot.svg"])
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.startswith("<?xml")


def test_a_bad_option_is_refused(tmp_path):
    with pytest.raises(InputError, match="--rounds"):
        inference.main(["--images", str(tmp_path), "--rounds", "0"])
