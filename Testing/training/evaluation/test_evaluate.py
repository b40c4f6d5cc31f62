# SPDX-License-Identifier: Apache-2.0
"""Evaluation of segmenters whose faults are known: scores, pictures, label maps, stopped runs."""

import json

import numpy as np
import pandas as pd
import pytest

from srcsm_training.data.dataset import Case, Dataset
from srcsm_training.evaluation.evaluate import Scoring, evaluate, map_labels, parse_label_map
from srcsm_training.evaluation.scores import EvaluationError, read_scores
from SRCSMSegmenterLib.errors import ConfigError, DatasetError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import write_volume

LABELS = {"liver": 1, "spleen": 2}
SHAPE = (3, 6, 8)
AFFINE = np.diag([-1.0, -1.5, 4.0, 1.0])


def truth_array():
    array = np.zeros(SHAPE, np.uint8)
    array[1, 1:4, 2:6] = 1
    array[2, 3:5, 1:4] = 2
    return array


@pytest.fixture
def dataset(tmp_path):
    """Two cases that share one truth; the first voxel of the image tells them apart."""
    cases = []
    for number, name in enumerate(["p", "q"]):
        image = np.full(SHAPE, 100 + number, np.int16)
        case = Case(name, tmp_path / f"{name}_image.nii.gz", tmp_path / f"{name}_labels.nii.gz")
        write_volume(case.image, Volume(image, Geometry(SHAPE[::-1], AFFINE)))
        write_volume(case.labels, Volume(truth_array(), Geometry(SHAPE[::-1], AFFINE)))
        cases.append(case)
    return Dataset(tmp_path, "Heart", "MR", LABELS, tuple(cases))


def segment(image, source_matching):
    """Perfect with SM; without, liver is halved and, in q, the spleen is lost."""
    labels = truth_array()
    if not source_matching:
        labels[1, 1:4, 4:6] = 0
        if image.array[0, 0, 0] == 101:
            labels[labels == 2] = 0
    return Volume(labels, image.geometry)


def test_evaluate_scores_every_case_with_and_without_source_matching(dataset, tmp_path):
    calls = []
    output = tmp_path / "results"
    table = evaluate(segment, [dataset], output, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4, "p"), (2, 4, "p"), (3, 4, "q"), (4, 4, "q")]
    assert table.groupby("source_matching")["dice"].mean().to_dict() == {
        "off": pytest.approx((2 / 3 + 1 + 2 / 3 + 0) / 4),
        "on": 1,
    }
    missed = table[table["status"] == "missed"]
    assert missed[["case", "label", "source_matching"]].values.tolist() == [["q", "spleen", "off"]]
    assert (table["seconds"] > 0).all()
    pd.testing.assert_frame_equal(read_scores(output / "cases.csv"), table)
    assert {path.name for path in output.iterdir()} == {
        "cases.csv",
        "metrics.json",
        "summary.md",
        "pictures",
    }


@pytest.mark.parametrize("shift", [0.0, 60.0])
def test_a_truth_that_is_stored_mirrored_scores_the_same_and_one_elsewhere_is_refused(
    dataset, tmp_path, shift
):
    whole = Geometry(SHAPE[::-1], AFFINE)
    affine = AFFINE * (-1, 1, 1, 1)
    affine[:3, 3] = whole.to_ras((SHAPE[2] - 1, 0, 0)) + np.array([shift, 0, 0])
    mirrored = Volume(truth_array()[:, :, ::-1], Geometry(SHAPE[::-1], affine))
    write_volume(dataset.cases[0].labels, mirrored)
    told = []
    run = (segment, [dataset], tmp_path / "out", ("on",), Scoring(worst=0))
    if shift:
        with pytest.raises(VolumeError, match=r"p_labels.* does not lie where"):
            evaluate(*run)
        return
    table = evaluate(*run, tell=lambda path, remarks: told.extend((path, r) for r in remarks))
    assert (table["dice"] == 1).all()
    assert [path for path, remark in told if "another grid" in remark] == [dataset.cases[0].labels]


def test_a_truth_with_a_label_that_the_dataset_does_not_name_is_refused(dataset, tmp_path):
    labels = truth_array()
    labels[0, 0, 0] = 9
    write_volume(dataset.cases[1].labels, Volume(labels, Geometry(SHAPE[::-1], AFFINE)))
    with pytest.raises(DatasetError, match=r"q_labels.* holds the labels \[9\]"):
        evaluate(segment, [dataset], tmp_path / "out", ("on",), Scoring(worst=0))


def test_labels_beyond_255_are_mapped_as_they_are():
    mapped = map_labels(np.array([0, 1, 2], np.uint8), {1: 300, 2: 1})
    assert mapped.tolist() == [0, 300, 1]


def test_evaluate_uses_the_spacing_of_the_scan(dataset, tmp_path):
    def one_slice_off(image, source_matching):
        return Volume(np.roll(truth_array(), -1, axis=0), image.geometry)

    table = evaluate(one_slice_off, [dataset], tmp_path / "out", ("off",), scoring=Scoring(worst=0))
    assert table["distance_max"].tolist() == [4.0] * 4  # slices of 4 mm


def test_pictures_show_only_the_worst_cases(dataset, tmp_path):
    evaluate(segment, [dataset], tmp_path / "out", ("off",), scoring=Scoring(worst=1))
    [picture] = (tmp_path / "out" / "pictures").iterdir()
    assert picture.name == "Heart_q_sm_off.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_label_map_renames_the_prediction_and_limits_what_is_scored(dataset, tmp_path):
    def whole_heart(image, source_matching):
        return Volume(np.where(truth_array() == 2, 7, 3).astype(np.uint8), image.geometry)

    table = evaluate(whole_heart, [dataset], tmp_path / "out", ("on",), scoring=Scoring({7: 2}))
    assert table[["label", "dice"]].values.tolist() == [["spleen", 1.0]] * 2
    with pytest.raises(DatasetError, match=r"no label \[5\]"):
        evaluate(whole_heart, [dataset], tmp_path / "out", scoring=Scoring({7: 5}))


def test_settings_travel_into_the_report(dataset, tmp_path):
    evaluate(
        segment,
        [dataset],
        tmp_path,
        ("on",),
        scoring=Scoring(worst=0, settings={"bundle": "models/a"}),
    )
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["settings"] == {
        "bundle": "models/a"
    }
    assert "- bundle: models/a" in (tmp_path / "summary.md").read_text("utf-8")


def test_a_run_that_stops_keeps_its_scores_and_those_of_the_last_run(dataset, tmp_path):
    output = tmp_path / "out"
    before = evaluate(segment, [dataset], output, scoring=Scoring(worst=0))

    def fails_on_the_second(image, source_matching):
        if image.array[0, 0, 0] == 101:
            raise VolumeError("no")
        return segment(image, source_matching)

    with pytest.raises(VolumeError):
        evaluate(fails_on_the_second, [dataset], output, scoring=Scoring(worst=0))
    pd.testing.assert_frame_equal(read_scores(output / "cases.csv"), before)
    assert read_scores(output / "cases.partial.csv")["case"].unique().tolist() == ["p"]


def test_cases_without_labels_and_folders_without_leave_fail_before_any_work(dataset, tmp_path):
    def never(image, source_matching):
        raise AssertionError("segmented")

    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="Cannot write"):
        evaluate(never, [dataset], tmp_path / "file")
    bare = Dataset(tmp_path, "Heart", "MR", LABELS, (Case("p", dataset.cases[0].image, None),))
    with pytest.raises(DatasetError, match="no label map for p"):
        evaluate(never, [bare], tmp_path / "out")


def test_label_maps_are_read_and_applied():
    label_map = parse_label_map("1:1,5:2, 2:3")
    assert label_map == {1: 1, 5: 2, 2: 3}
    array = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    mapped = map_labels(array, label_map)
    assert mapped.tolist() == [[0, 1, 3], [0, 0, 2]]
    assert mapped.dtype == np.uint8
    assert map_labels(np.array([9, 1]), {1: 4, 2: 4}).tolist() == [0, 4]


@pytest.mark.parametrize("text", ["", "1", "1:a", "1:2:3", "1:1,1:2", "-1:1", "1:-1"])
def test_label_maps_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match="abel map"):
        parse_label_map(text)
