# SPDX-License-Identifier: Apache-2.0
"""Label maps of other tools: finding them, and what is refused."""

import json

import numpy as np
import pytest
import tiny

from srcsm_training.data.dataset import choose_cases, read_dataset
from srcsm_training.evaluation.evaluate import Scoring, evaluate_predictions
from srcsm_training.evaluation.predictions import find_predictions
from SRCSMSegmenterLib.errors import DatasetError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_labels, write_volume


@pytest.fixture
def dataset(tmp_path):
    return read_dataset(tiny.write_dataset(tmp_path / "Dataset001_Tiny", 2, "MR"))


@pytest.fixture
def predictions(dataset, tmp_path):
    """The truth itself, in two formats."""
    folder = tmp_path / "tool"
    folder.mkdir()
    for case, ending in zip(dataset.cases, (".nii.gz", ".nrrd"), strict=True):
        write_volume(folder / f"{case.name}{ending}", read_labels(case.labels))
    return folder


def rewrite(path, change):
    """Write a label map anew, its array and its affine changed."""
    volume = read_labels(path)
    array, affine = change(volume.array.copy(), volume.geometry.affine.copy())
    write_volume(path, Volume(array, Geometry(array.shape[::-1], affine)))


def score(folder, dataset, tmp_path, **scoring):
    found = find_predictions(folder, [dataset])
    return evaluate_predictions(found, [dataset], tmp_path / "out", Scoring(worst=1, **scoring))


def test_the_truth_scores_one_in_any_format(dataset, predictions, tmp_path):
    table = score(predictions, dataset, tmp_path)
    assert table[["dice", "surface_dice"]].eq(1).all(axis=None)
    assert table["source_matching"].unique().tolist() == ["-"]
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1


def test_several_datasets_may_have_folders_of_their_own(dataset, predictions, tmp_path):
    (tmp_path / "all").mkdir()
    predictions.rename(tmp_path / "all" / dataset.name)
    assert score(tmp_path / "all", dataset, tmp_path)["dice"].eq(1).all()


def test_a_label_map_renames_what_a_tool_calls_otherwise(dataset, predictions, tmp_path):
    for path in predictions.iterdir():
        rewrite(path, lambda array, affine: (np.array([0, 5, 7], np.uint8)[array], affine))
    with pytest.raises(DatasetError, match=r"a holds the labels \[5, 7\].*--map-labels"):
        score(predictions, dataset, tmp_path)
    assert score(predictions, dataset, tmp_path, label_map={5: 1, 7: 2})["dice"].eq(1).all()


def test_cut_scores_leave_out_what_lies_beyond_the_labels(dataset, predictions, tmp_path):
    def with_islands(array, affine):
        array[-1, :4, :4] = 1  # a slice that no label of the truth reaches
        return array, affine

    for path in predictions.iterdir():
        rewrite(path, with_islands)
    whole = score(predictions, dataset, tmp_path)
    assert (whole["protocol"] == "whole").all()
    assert whole[whole["label"] == "liver"]["dice"].lt(1).all()
    table = score(predictions, dataset, tmp_path, cut_to_labels=True)
    assert (table["protocol"] == "cut").all()
    assert table["dice"].eq(1).all()


def test_all_label_maps_that_are_missing_or_double_are_named(dataset, predictions):
    (predictions / "a.mha").write_bytes(b"")
    (predictions / "b.nrrd").unlink()
    with pytest.raises(DatasetError) as refusal:
        find_predictions(predictions, [dataset])
    assert "a has a.nii.gz and a.mha; keep one" in str(refusal.value)
    assert "b.nii.gz is missing" in str(refusal.value)
    with pytest.raises(DatasetError, match="is no folder"):
        find_predictions(predictions / "none", [dataset])


def test_label_maps_on_another_grid_are_refused(dataset, predictions, tmp_path):
    first = choose_cases(dataset, ["a"])

    def moved(array, affine):
        affine[0, 3] += 5
        return array, affine

    rewrite(predictions / "a.nii.gz", moved)
    with pytest.raises(VolumeError, match="does not lie where"):
        score(predictions, first, tmp_path)
    rewrite(predictions / "a.nii.gz", lambda array, affine: (array[1:], affine))
    with pytest.raises(VolumeError, match="20 x 22 x 23 voxels"):
        score(predictions, first, tmp_path)


def test_names_that_nnu_net_wrote_beside_its_label_maps_are_read(dataset, predictions):
    assert find_predictions(predictions, [dataset]).labels == {dataset.name: {}}
    path = predictions / "dataset.json"
    path.write_text(json.dumps({"labels": {"background": 0, "spleen": 1}}))
    assert find_predictions(predictions, [dataset]).labels == {dataset.name: {1: "spleen"}}
    for content, complaint in (
        ("[]", "holds no JSON object"),
        ("{}", "lacks labels"),
        ('{"labels": {"spleen": 1, "liver": 1}}', "one label two names"),
        ('{"labels": {"spleen": 1, "spleen": 2}}', "says 'spleen' twice"),
        ('{"labels": {"spleen": [1, 2]}}', "valid integer"),
    ):
        path.write_text(content)
        with pytest.raises(DatasetError, match=complaint):
            find_predictions(predictions, [dataset])
