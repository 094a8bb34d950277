import dataclasses

import pytest

from benchmarks import scale
from benchmarks.scale import Job, Prices
from benchmarks.scheduling import Cluster, simulate
from model.errors import InputError

IDEAL = Cluster(10)


def test_without_trouble_the_simulation_is_the_division():
    found = simulate(1000, 6.0, IDEAL)
    assert (found.seconds, found.attempts, found.kills, found.waste) == (600.0, 1000, 0, 0.0)
    assert found == simulate(1000, 6.0, dataclasses.replace(IDEAL, sharing="fixed"))
    assert simulate(1001, 6.0, IDEAL).seconds == 606.0


def test_slots_are_ready_after_their_start():
    found = simulate(10, 6.0, dataclasses.replace(IDEAL, start_seconds=100.0))
    assert 56.0 < found.seconds <= 106.0
    assert found.busy_seconds == pytest.approx(60.0)


def test_a_slow_slot_holds_back_only_its_own_units_where_units_are_pulled():
    slow = dataclasses.replace(IDEAL, slow_share=0.2, slow_factor=3.0)
    pulled = simulate(1000, 6.0, slow)
    fixed = simulate(1000, 6.0, dataclasses.replace(slow, sharing="fixed"))
    assert fixed.seconds == pytest.approx(1800.0)
    assert 600.0 < pulled.seconds < 800.0


def test_a_backup_attempt_ends_the_wait_for_a_slow_slot():
    slow = dataclasses.replace(IDEAL, slow_share=0.2, slow_factor=10.0)
    alone = simulate(100, 60.0, slow, seed=1)
    helped = simulate(100, 60.0, dataclasses.replace(slow, backup=True), seed=1)
    assert helped.seconds < alone.seconds
    assert helped.attempts > alone.attempts == 100


@pytest.mark.parametrize("sharing", ["pull", "fixed"])
@pytest.mark.parametrize("backup", [False, True])
def test_every_unit_is_committed_whatever_is_killed(sharing, backup):
    cluster = Cluster(10, sharing, backup, 5, False, 0.2, 3.0, 0.3, kills_per_hour=20.0, start_seconds=30.0)
    found = simulate(500, 6.0, cluster, seed=3)
    assert found.kills > 0
    assert found.attempts > 500
    assert found.waste > 0
    assert found.useful_seconds > 0.5 * 500 * 6.0


def test_looking_for_markers_spares_what_a_bundle_has_committed():
    killed = dataclasses.replace(IDEAL, kills_per_hour=10.0, bundle=20)
    asks, blind = (simulate(2000, 6.0, dataclasses.replace(killed, asks=asks)) for asks in (True, False))
    assert asks.waste < blind.waste / 3
    # Half a unit is lost at each kill, and nothing else.
    assert asks.attempts == 2000 + asks.kills


def test_the_formulas_agree_with_each_other():
    job, prices = Job(cores=100, unit_seconds=0.0, start_seconds=0.0), Prices()
    assert job.units == 93_750
    assert job.core_hours == pytest.approx(1e9 / 180 / 3600, rel=0.001)
    assert dataclasses.replace(job, rate=360.0).seconds == pytest.approx(job.seconds / 2)
    assert prices.dataflow(job) == pytest.approx(job.core_hours * (0.056 + 4 * 0.003557))
    assert prices.requests(job) == pytest.approx((93_750 * 3.001 * 0.005 + 93_750 * 15 * 0.0004) / 1000)


def test_the_page_holds_what_the_command_says(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- scale -->\nold\n<!-- /scale -->\nafter\n")
    arguments = ["--images", "1e7", "--cores", "50"]
    scale.main(arguments)
    shown = capsys.readouterr().out.strip()
    scale.main([*arguments, "--page", str(page)])
    assert page.read_text() == f"before\n<!-- scale -->\n{shown}\n<!-- /scale -->\nafter\n"
    for table in shown.split("###")[1:]:
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize("option", ["--rate", "--cores", "--shard-bytes"])
def test_a_size_of_nothing_is_refused(option):
    with pytest.raises(InputError, match=option):
        scale.main([option, "0"])
