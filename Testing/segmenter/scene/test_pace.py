# SPDX-License-Identifier: Apache-2.0
"""The time left follows the pace of the run's own stage, and the last run's proportions."""

import pytest

from SRCSMSegmenterLib.scene import pace
from SRCSMSegmenterLib.scene.pace import Pace


@pytest.fixture(autouse=True)
def _first_run_of_the_session(monkeypatch):
    monkeypatch.setattr(pace, "_last_runs", {})


def a_finished_run():
    """Loading for 100 s, preparing for 2 s, the network for 16 s, resampling for 4 s."""
    run = Pace("ct", 10.0)
    for stage, fraction, now in (
        ("load", 0.0, 0.0),
        ("prepare", 0.0, 100.0),
        ("network", 0.1, 102.0),
        ("resample", 0.9, 118.0),
    ):
        run.seconds_left(stage, fraction, now)
    run.finish(122.0)


def test_nothing_is_told_before_anything_is_measured():
    run = Pace("ct", 10.0)
    assert run.seconds_left("load", 0.0, 0.0) is None
    assert run.seconds_left("prepare", 0.0, 5.0) is None
    assert run.seconds_left("network", 0.1, 6.0) is None


def test_the_first_run_is_told_from_the_networks_own_pace():
    run = Pace("ct", 10.0)
    run.seconds_left("load", 0.0, 0.0)
    run.seconds_left("prepare", 0.0, 50.0)
    run.seconds_left("network", 0.1, 51.0)
    assert run.seconds_left("network", 0.2, 61.0) == pytest.approx(80.0)


def test_the_next_run_is_told_from_the_start_without_loading_and_by_its_size():
    a_finished_run()
    run = Pace("ct", 20.0)
    assert run.seconds_left("load", 0.0, 0.0) == pytest.approx(2 * 22)
    assert run.seconds_left("prepare", 0.0, 7.0) == pytest.approx(2 * 22)
    assert run.seconds_left("prepare", 0.0, 10.0) == pytest.approx(2 * 22 - 3)
    assert Pace("mr", 20.0).seconds_left("load", 0.0, 0.0) is None


def test_a_slower_run_stretches_the_later_stages():
    a_finished_run()
    run = Pace("ct", 10.0)
    run.seconds_left("network", 0.1, 0.0)
    assert run.seconds_left("network", 0.5, 24.0) == pytest.approx(24 + 3 * 4)
    assert run.seconds_left("resample", 0.9, 48.0) == pytest.approx(12.0)
    assert run.seconds_left("resample", 1.0, 60.0) == 0.0


def test_an_overdue_stage_leaves_what_comes_after_it():
    a_finished_run()
    run = Pace("ct", 10.0)
    run.seconds_left("prepare", 0.0, 0.0)
    assert run.seconds_left("prepare", 0.0, 30.0) == pytest.approx(20.0)


def test_a_stage_that_begins_again_is_timed_anew():
    run = Pace("ct", 10.0)
    run.seconds_left("network", 0.1, 0.0)
    run.seconds_left("network", 0.8, 7.0)
    run.seconds_left("network", 0.1, 8.0)
    assert run.seconds_left("network", 0.2, 10.0) == pytest.approx(16.0)


def test_stages_without_a_fraction_of_their_own_take_as_long_as_last_time():
    first = Pace("ct", 10.0)
    first.seconds_left("choose", 0.5, 0.0)
    first.seconds_left("encode", 1.0, 5.0)
    first.finish(12.0)
    run = Pace("ct", 10.0)
    run.seconds_left("choose", 0.5, 0.0)
    assert run.seconds_left("encode", 1.0, 5.0) == pytest.approx(7.0)
    assert run.seconds_left("encode", 1.0, 8.0) == pytest.approx(4.0)


def test_later_runs_take_as_long_as_this_one():
    run = Pace("ct", 10.0)
    run.seconds_left("prepare", 0.0, 0.0)
    run.seconds_left("network", 0.1, 1.0)
    left = run.seconds_left("network", 0.5, 5.0, later_runs=2)
    assert left == pytest.approx(5 + 2 * (1 + 4 + 5))
