# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training, from steps whose duration a clock of our own sets."""

import json
from pathlib import Path

import pytest
import SimpleITK as sitk

from srcsm_training.data.dataset import Case
from srcsm_training.engine import estimate
from srcsm_training.engine.estimate import (
    Estimate,
    duration,
    measure,
    measure_training,
    peak_memory,
)
from srcsm_training.sam.from_scratch import SamConfig

ENVIRONMENT = {"device": "cpu", "precision": "bf16", "precision_reason": "it is quick"}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that tests add to."""
    now = [100.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    return now


def steps(clock, durations, seen):
    """A run of steps of these durations."""

    def run(folder: Path, done) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "environment.json").write_text(json.dumps(ENVIRONMENT))
        for number, seconds in enumerate(durations):
            seen.append(folder)
            clock[0] += seconds
            done(number + 1)

    return run


def test_the_first_steps_are_left_out_and_later_ones_never_run(clock):
    seen: list[Path] = []
    measured = measure(steps(clock, [9, 3, 2, *[0.5] * 4, *[0.25] * 6, *[99] * 50], seen))
    assert len(seen) == estimate.WARM_UP + estimate.STEPS == 13
    assert measured.seconds == 0.25  # the median of 0.5 four and 0.25 six times
    assert (measured.device, measured.precision) == ("cpu", "bf16: it is quick")
    assert measured.device_memory == 0
    assert not seen[0].exists()


def test_a_slow_step_ends_the_measurement(clock):
    seen: list[Path] = []
    assert measure(steps(clock, [8, 7, 6, 5], seen)).seconds == 6
    assert len(seen) == 3  # 21 s are over


def test_a_short_training_is_measured_to_its_end(clock):
    assert measure(steps(clock, [8, 1, 3], [])).seconds == 3


def test_steps_may_be_reported_in_batches(clock):
    def run(folder: Path, done) -> None:
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
        for count in (4, 8, 12, 16, 20):
            clock[0] += 2
            done(count)

    assert measure(run).seconds == 0.5


def test_an_estimate_is_worded_for_the_user():
    measured = Estimate(0.5, 1_900_000_000, "cpu", 0, "bf16: it is quick")
    first, second, third = measured.lines(3600)
    assert first.startswith("measured on ")
    assert first.endswith("device cpu, in bf16: it is quick")
    assert second == "training: about 30 min (3600 x 0.5 s), without validations and previews"
    assert third == "memory: about 1.9 GB"
    assert Estimate(1, 0, "cpu", 0, "").lines(1)[2] == "memory: about unknown"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "12 s"), (600, "10 min"), (7200, "2.0 h"), (864_000, "10.0 days")],
)
def test_durations_have_the_unit_that_suits_them(seconds, words):
    assert duration(seconds) == words


def test_a_training_is_measured_on_two_cases_with_the_memory_of_all(clock, tmp_path, monkeypatch):
    cases = []
    for name in ("a[1]", "b", "c", "d"):
        path = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkInt16), str(path))
        cases.append(Case(name, path, path))
    given = []

    def training(config, folder, *, device, limits) -> None:
        given.append((config.data, device))
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))

    monkeypatch.setattr(estimate, "peak_memory", lambda: 1000)
    measured = measure_training(training, SamConfig(), cases, "cpu")
    [(data, device)] = given
    assert data.cases == ("a[[]1]", "b")
    assert (data.folds, data.validation, device) == (0, (), "cpu")
    assert measured.memory == 1000 + 2 * 3 * 4 * 5 * 6  # of the two others, 3 bytes a voxel


def test_peak_memory_is_in_bytes():
    # Any Python with torch takes between 50 MB and 1 TB.
    assert 5e7 < peak_memory() < 1e12


def test_on_linux_the_memory_of_the_process_that_started_this_one_is_no_part(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  500 kB\nVmHWM:\t    321 kB\nVmRSS:\t  123 kB\n")
    monkeypatch.setattr(estimate, "STATUS", status)
    assert peak_memory() == 321 * 1024
