# SPDX-License-Identifier: Apache-2.0
"""The demonstration: its time, its last step and its overview picture."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from srcsm_training import demo
from srcsm_training.data.dataset import read_dataset
from srcsm_training.demo import Panel, overview
from srcsm_training.engine.checkpoint import CheckpointError
from srcsm_training.plots import COLOURS
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.volume_io import read_labels


def test_the_overview_has_every_panel_and_every_organs_colour(tmp_path):
    rng = np.random.default_rng(5)
    labels = np.zeros((40, 56), np.uint8)
    for label, j in enumerate((3, 12, 21, 30), start=1):
        labels[j : j + 6, 8:20] = label
    titles = ("CT, truth", "MR, truth", "plain", "+ SRC", "+ SRC and SM")
    rows = [[Panel(title, rng.normal(size=labels.shape), labels) for title in titles]] * 2
    path = tmp_path / "new" / "overview.png"
    overview(path, rows, ("liver", "right kidney", "left kidney", "spleen"))

    picture = imread(path)[..., :3]
    assert picture.shape[1] > 900
    # The contours of both rows and the legend's patch: pixels of each colour left and right.
    for colour in COLOURS[:4]:
        found = np.abs(picture - to_rgb(colour)).max(axis=2) < 0.02
        columns = np.flatnonzero(found.any(axis=0)) / picture.shape[1]
        assert columns.min() < 0.2
        assert columns.max() > 0.8
    assert [path.name for path in path.parent.iterdir()] == ["overview.png"]


def test_another_versions_folder_is_named_as_what_to_delete(tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise CheckpointError("It is another training's.")

    monkeypatch.setattr(demo, "write_dataset", lambda *arguments: None)
    monkeypatch.setattr(demo, "read_dataset", lambda folder: SimpleNamespace(folder=folder))
    monkeypatch.setattr(demo, "run_training", refuse)
    with pytest.raises(CheckpointError, match=f"another training's.*delete {tmp_path}"):
        demo.run_demo(tmp_path, 6.0, say=lambda line: None, steps=7)


def test_the_steps_fit_the_time_with_what_follows_the_trainings():
    # 0.9 of 300 s at 0.1 s a step are 2700 steps, 250 of them for what follows.
    assert demo.steps_within(300, 0.1, 1500) == 1225
    assert demo.steps_within(300, 0.01, 1500) == 1500
    assert demo.steps_within(300, 2.0, 1500) == demo.LEAST_STEPS


def test_the_number_of_steps_is_measured_once_and_kept(tmp_path, monkeypatch):
    measured = []

    def measure(training, config, cases, device):
        measured.append((cases, device))
        return SimpleNamespace(seconds=0.1)

    monkeypatch.setattr(demo, "measure_training", measure)
    monkeypatch.setattr(demo.time, "monotonic", lambda: 1000.0)
    source, said = SimpleNamespace(folder=tmp_path, cases=["a case"]), []
    for end in (1300.0, 1900.0):
        assert demo._number_of_steps(tmp_path, source, None, end, said.append) == 1225
    assert measured == [(["a case"], "auto")]
    assert "1225 steps" in said[-1]
    assert "4 min left" in said[-1]  # 2700 steps


def test_steps_that_were_asked_for_need_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "measure_training", None)
    source = SimpleNamespace(cases=[])
    for wanted, steps in ((7, 7), (None, 7), (9, 9), (None, 7)):  # 9 are another training's
        assert demo._number_of_steps(tmp_path, source, wanted, 0.0, print) == steps


def test_the_time_left_follows_the_steps_since_the_first_one_seen():
    countdown = demo.Countdown(100)
    assert math.isnan(countdown.seconds_left(41, now=1000.0))
    assert countdown.seconds_left(43, now=1004.0) == pytest.approx(2 * 57)
    assert countdown.seconds_left(51, now=1005.0) == pytest.approx(0.5 * 49)


def test_a_sam_refines_what_the_network_finds(tmp_path, monkeypatch):
    """The network finds nothing; SAM, which is shown its probabilities, all of it."""
    dataset = read_dataset(tiny.write_dataset(tmp_path / "mr", cases=1, modality="MR"))
    truth = read_labels(dataset.cases[0].labels)
    segments = tuple(segment_for(name, value) for name, value in dataset.labels.items())
    bundle = SimpleNamespace(description=SimpleNamespace(labels=segments))

    def segment(volume, bundle, *, modality, source_matching, keep_largest):
        assert (modality, source_matching, keep_largest) == ("MR", True, False)
        return SimpleNamespace(
            labels=Volume(np.zeros_like(truth.array), volume.geometry),
            probabilities=SimpleNamespace(whole=lambda label: (truth.array == label) * 0.4),
        )

    def refine_coarse(volume, organs, grid, sam, *, modality):
        assert sam == "a SAM"
        labels = sum(organ.label * (organ.mask > 0.3).astype(np.uint8) for organ in organs)
        return SimpleNamespace(labels=Volume(labels, volume.geometry))

    monkeypatch.setattr(demo, "segment", segment)
    monkeypatch.setattr(demo, "refine_coarse", refine_coarse)
    assert demo._test(bundle, dataset, "on", tmp_path / "off", None)["mean"] == 0
    assert demo._test(bundle, dataset, "on", tmp_path / "on", "a SAM")["mean"] == 1
    written = read_labels(tmp_path / "on" / "a.seg.nrrd")
    np.testing.assert_array_equal(written.array, truth.array)
