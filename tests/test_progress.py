"""What a person sees of a run that goes on."""

import time

from pipelines import progress


def test_a_line_tells_units_images_speed_and_time_left(capsys):
    committed = ["a"]
    with progress.run_progress({"a": 100, "b": 100, "c": 200}, lambda: committed):
        progress.images_done.add(50)
        committed.append("b")
        time.sleep(1.2)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("2/3 units, 50 images, ")
    images_per_second = float(line.split("images, ")[1].split(" ")[0])
    assert 10 < images_per_second < 50
    # 100 of the 300 bytes that were left at the start took 1.2 s or a little more.
    assert line.endswith(("0:02 left", "0:03 left"))


def test_units_committed_before_are_not_counted_as_speed(capsys):
    with progress.run_progress({"a": 0, "b": 0}, lambda: ["a", "b"]):
        pass
    assert capsys.readouterr().err == "2/2 units, 0 images, 0 images/s\n"
