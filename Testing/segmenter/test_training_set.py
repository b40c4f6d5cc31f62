# SPDX-License-Identifier: Apache-2.0
"""Cases added to a dataset: complete or not at all, and never over something that is there."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from geometries import oblique_left_handed

from srcsm_training.data.dataset import check_dataset, read_dataset
from SRCSMSegmenterLib import training_set
from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.training_set import AddedCase, add_case
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

GRID = oblique_left_handed((6, 5, 4))


def a_scan(seed=0):
    array = np.random.default_rng(seed).integers(0, 900, GRID.shape).astype(np.int16)
    return Volume(array, GRID)


def a_mask(k):
    mask = np.zeros(GRID.shape, bool)
    mask[k, 1:4, 2:5] = True
    return mask


def organs(**slices):
    return [(name, a_mask(k)) for name, k in slices.items()]


def content(folder):
    """Relative path -> bytes of all files."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def dataset(tmp_path):
    """A dataset with one case."""
    folder = tmp_path / "Dataset9_Own"
    add_case(folder, "first", a_scan(), organs(liver=1, spleen=2), "MR")
    return folder


def test_a_new_dataset_is_what_training_reads(tmp_path):
    folder = tmp_path / "new" / "Dataset9_Own"
    scan = a_scan()
    added = add_case(folder, "T2: axial/2", scan, organs(liver=1, right_kidney=3), "MR")
    assert added == AddedCase(folder, "T2_axial_2", {"liver": 1, "right_kidney": 2}, (), 1)
    dataset = read_dataset(folder)
    assert check_dataset(dataset) == []
    assert (dataset.modality, dataset.labels) == ("MR", {"liver": 1, "right_kidney": 2})
    (case,) = dataset.cases
    image, labels = read_volume(case.image), read_labels(case.labels)
    assert np.array_equal(image.array, scan.array)
    assert image.geometry.matches(GRID, 1e-6)
    assert np.array_equal(labels.array, a_mask(1) + 2 * a_mask(3))


def test_a_case_takes_the_labels_of_the_dataset_by_name(dataset):
    before = content(dataset)
    added = add_case(
        dataset, "second", a_scan(1), [("Spleen", a_mask(0)), (" LIVER", a_mask(3))], "MR"
    )
    assert (added.cases, added.labels) == (2, {"liver": 1, "spleen": 2})
    labels = read_labels(dataset / "labelsTr" / "second.nii.gz").array
    assert np.array_equal(labels, 2 * a_mask(0) + a_mask(3))
    assert check_dataset(read_dataset(dataset)) == []
    after = content(dataset)
    assert {name: after[name] for name in before if name != "dataset.json"} == {
        name: data for name, data in before.items() if name != "dataset.json"
    }


def test_what_else_the_description_says_stays(dataset):
    path = dataset / "dataset.json"
    told = json.loads(path.read_text()) | {"reference": "Müller", "numTraining": 7}
    path.write_text(json.dumps(told))
    add_case(dataset, "second", a_scan(1), organs(liver=1, spleen=2), "MR")
    assert json.loads(path.read_text()) == told | {"numTraining": 2}


def test_an_organ_without_a_voxel_is_named(dataset):
    masks = [("liver", a_mask(0)), ("spleen", np.zeros(GRID.shape, bool))]
    assert add_case(dataset, "second", a_scan(1), masks, "MR").absent == ("spleen",)


def test_another_scan_of_the_same_name_gets_a_number_and_the_same_scan_is_refused(dataset):
    masks = organs(liver=1, spleen=2)
    assert add_case(dataset, "first", a_scan(1), masks, "MR").name == "first_2"
    assert add_case(dataset, "first", a_scan(2), masks, "MR").name == "first_3"
    before = content(dataset)
    with pytest.raises(DatasetError, match='already, as case "first_2"'):
        add_case(dataset, "first", a_scan(1), masks, "MR")
    assert content(dataset) == before


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (organs(liver=1, spleen=2, bone=3), 'no label "bone", but "liver", "spleen"'),
        (organs(liver=1), 'no segment "spleen"'),
        (organs(liver=1, Liver=2, spleen=3), 'Two segments are called "liver"'),
        (organs(liver=1, spleen=1), "spleen overlaps liver in 9 voxels"),
        ([("liver", ~a_mask(1) & a_mask(1)), ("spleen", ~a_mask(1) & a_mask(1))], "has a voxel"),
        ([("liver", np.ones((2, 2, 2), bool))], "has shape"),
    ],
)
def test_masks_that_do_not_fit_are_refused_and_nothing_changes(dataset, masks, message):
    before = content(dataset)
    with pytest.raises(DatasetError, match=message):
        add_case(dataset, "second", a_scan(1), masks, "MR")
    assert content(dataset) == before


def test_scans_that_do_not_fit_are_refused_and_nothing_changes(dataset):
    before, masks = content(dataset), organs(liver=1, spleen=2)
    broken = Volume(np.full(GRID.shape, np.nan), GRID)
    for scan, modality, message in (
        (a_scan(1), "CT", "dataset of MR, the scan is CT"),
        (a_scan(1), "US", "not from US"),
        (broken, "MR", "NaN"),
    ):
        with pytest.raises(DatasetError, match=message):
            add_case(dataset, "second", scan, masks, modality)
    assert content(dataset) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "liver": 2}}, "without gaps"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, "2 channels"),
        ({"file_ending": ".png"}, "not '.png'"),
        ({"dataset": {"first": {"images": ["i"], "label": "l"}}}, "would not be trained on"),
    ],
)
def test_a_description_with_faults_is_refused(dataset, change, message):
    path = dataset / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = content(dataset)
    with pytest.raises(DatasetError, match=message):
        add_case(dataset, "second", a_scan(1), organs(liver=1, spleen=2), "MR")
    assert content(dataset) == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    for folder in (tmp_path, tmp_path / "holiday.jpg"):
        with pytest.raises(DatasetError, match="is no dataset"):
            add_case(folder, "first", a_scan(), organs(liver=1), "MR")
    assert content(tmp_path) == {"holiday.jpg": b"x"}


@pytest.mark.parametrize("name", ["background", "Ignore", "  ", "?"])
def test_names_that_no_label_can_have_are_refused(tmp_path, name):
    with pytest.raises(DatasetError, match="cannot be called"):
        add_case(tmp_path, "first", a_scan(), [(name, a_mask(1))], "MR")


@pytest.mark.parametrize("step", ["write_volume", "write_labels", "write_description"])
def test_a_full_disk_leaves_the_dataset_as_it_was(dataset, monkeypatch, step):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = content(dataset)
    monkeypatch.setattr(training_set, step, fail)
    with pytest.raises(DatasetError, match="No space left"):
        add_case(dataset, "second", a_scan(1), organs(liver=1, spleen=2), "MR")
    assert content(dataset) == before
    with pytest.raises(DatasetError, match="No space left"):
        add_case(dataset.parent / "new", "first", a_scan(1), organs(liver=1), "MR")
    monkeypatch.undo()
    add_case(dataset.parent / "new", "first", a_scan(1), organs(liver=1), "MR")


def test_the_command_trains_on_the_dataset(tmp_path):
    folder = tmp_path / "my data" / "Dataset9_Own"
    added = add_case(folder, "first", a_scan(), organs(liver=1), "MR")
    run = tmp_path / "my data" / "runs" / "Dataset9_Own"
    assert shlex.split(added.train_command()) == [
        *("srcsm", "train", "--data", str(folder), "--preset", "abdomen-fast"),
        *("--out", str(run), "--set", "data.folds=0"),
    ]
    assert added.model == run / "model"
    added = add_case(folder, "second", a_scan(1), organs(liver=1), "MR")
    assert "data.folds" not in added.train_command()


@pytest.mark.parametrize(
    ("organ", "preset"),
    [("LV", "heart-fast"), ("ventricle_left", "heart-fast"), ("Prostate", "prostate-fast")],
)
def test_the_preset_is_that_of_the_organs(tmp_path, organ, preset):
    added = add_case(tmp_path, "first", a_scan(), [(organ, a_mask(1))], "MR")
    assert f"--preset {preset} " in added.train_command()
