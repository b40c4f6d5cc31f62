# SPDX-License-Identifier: Apache-2.0
"""nnU-Net raw datasets: what is read, and that every fault is named, all at once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from srcsm_training.data.dataset import (
    as_bytes,
    case_content,
    check_dataset,
    read_case,
    read_dataset,
)
from SRCSMSegmenterLib.errors import DatasetError, VolumeError

DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "spleen": 2, "liver": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
SHAPE = (4, 5, 6)


def write(path, array, spacing=(1.0, 2.0, 3.0), origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def describe(folder, **changes):
    kept = {key: value for key, value in (DESCRIPTION | changes).items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(kept))


def image_array():
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) - 120


def label_array():
    array = np.zeros(SHAPE, np.uint8)
    array[1, 2:4, 3] = 1
    array[2, 1, 2:5] = 2
    return array


@pytest.fixture
def folder(tmp_path):
    """A dataset without faults, cases b and a."""
    folder = tmp_path / "Dataset777_Phantom"
    for name in ("b", "a"):
        write(folder / f"imagesTr/{name}_0000.nii.gz", image_array())
        write(folder / f"labelsTr/{name}.nii.gz", label_array())
    describe(folder)
    return folder


def faults_of(folder, split="Tr"):
    with pytest.raises(DatasetError) as caught:
        check_dataset(read_dataset(folder, split))
    title, *faults = str(caught.value).split("\n- ")
    assert str(folder) in title
    return faults


def test_a_dataset_is_read_as_it_is(folder):
    dataset = read_dataset(str(folder))
    assert (dataset.name, dataset.modality) == ("Dataset777_Phantom", "CT")
    assert list(dataset.labels.items()) == [("liver", 1), ("spleen", 2)]
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert dataset.cases[1].image == folder / "imagesTr" / "b_0000.nii.gz"
    assert dataset.cases[1].labels == folder / "labelsTr" / "b.nii.gz"


def test_a_sound_dataset_passes(folder):
    assert check_dataset(read_dataset(folder)) == []


@pytest.mark.parametrize(
    ("channel", "modality"), [("CT", "CT"), ("cta_portal", "CT"), ("T2", "MR")]
)
def test_the_first_channel_names_the_modality(folder, channel, modality):
    describe(folder, channel_names={"0": channel})
    assert read_dataset(folder).modality == modality


@pytest.mark.parametrize("channel", ["noNorm", "zscore", "", 0, 1.5])
@pytest.mark.parametrize(("lowest", "modality"), [(-120, "CT"), (0, "MR")])
def test_images_decide_the_modality_if_the_channels_name_does_not(
    folder, channel, lowest, modality
):
    describe(folder, channel_names={"0": channel})
    image = np.maximum(image_array(), lowest)
    for name in ("a", "b"):
        write(folder / f"imagesTr/{name}_0000.nii.gz", image)
    dataset = read_dataset(folder)
    assert dataset.modality == modality
    (said,) = check_dataset(dataset)
    assert f"by its first image the dataset is taken for {modality}." in said


def test_images_that_contradict_the_channels_name_are_told(folder):
    describe(folder, channel_names={"0": "CT"})
    write(folder / "imagesTr/b_0000.nii.gz", np.abs(image_array()))
    assert check_dataset(read_dataset(folder)) == [
        "b: taken for CT, although hardly a voxel is below -100."
    ]


def test_another_file_ending_is_followed(folder):
    for path in [*folder.glob("images*/*"), *folder.glob("labels*/*")]:
        array = image_array() if "images" in path.parent.name else label_array()
        write(path.with_name(path.name.replace(".nii.gz", ".nrrd")), array)
        path.unlink()
    describe(folder, file_ending=".nrrd")
    assert check_dataset(read_dataset(folder)) == []


def test_test_cases_need_no_labels_until_there_is_a_folder_of_them(folder):
    write(folder / "imagesTs/x_0000.nii.gz", image_array())
    dataset = read_dataset(folder, "Ts")
    assert [(case.name, case.labels) for case in dataset.cases] == [("x", None)]
    assert check_dataset(dataset) == []
    (folder / "labelsTs").mkdir()
    assert faults_of(folder, "Ts")[0] == "x: labelsTs/x.nii.gz is missing."
    write(folder / "labelsTs/x.nii.gz", label_array())
    assert read_dataset(folder, "Ts").cases[0].labels == folder / "labelsTs" / "x.nii.gz"


def test_hidden_files_are_no_cases(folder):
    (folder / "imagesTr" / ".DS_Store").write_text("")
    assert len(read_dataset(folder).cases) == 2


def test_no_dataset_json_is_one_sentence(tmp_path):
    with pytest.raises(DatasetError, match="is missing; give the folder"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{broken")
    with pytest.raises(DatasetError, match=r"dataset\.json is no JSON"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DatasetError, match="no JSON object"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("key", ["channel_names", "labels", "numTraining", "file_ending"])
def test_a_missing_key_is_named_alone(folder, key):
    describe(folder, **{key: None})
    assert faults_of(folder) == [f'dataset.json lacks "{key}".']


@pytest.mark.parametrize(
    ("key", "content", "fault"),
    [
        ("channel_names", ["CT"], "channel_names should hold keys and values"),
        ("channel_names", "CT", "channel_names should hold keys and values"),
        ("channel_names", {"0": ["CT"]}, "channel_names: 0.str should be"),
        ("labels", None, "labels should hold something, not null"),
        ("labels", 5, "labels should hold keys and values, not 5."),
        ("numTraining", "2", 'numTraining should be a valid integer, not "2".'),
        ("numTraining", True, "numTraining should be a valid integer, not true."),
        ("file_ending", None, "file_ending should hold something, not null"),
        ("file_ending", 5, "file_ending should be a valid string, not 5."),
    ],
)
def test_a_key_that_holds_something_else_is_named(folder, key, content, fault):
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION | {key: content}))
    (first,) = faults_of(folder)
    assert fault in first


def test_a_dataset_is_called_as_its_user_calls_it(folder, tmp_path):
    (tmp_path / "Dataset001_Mine").symlink_to(folder)
    assert read_dataset(tmp_path / "Dataset001_Mine").name == "Dataset001_Mine"


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ({"background": 0, "liver": 2, "spleen": 3}, "without gaps"),
        ({"liver": 1, "spleen": 2}, "background = 0"),
        ({"background": 0}, "at least one structure"),
        ({"background": 0, "organ": [1, 2]}, "without regions"),
        ({"0": "background", "1": "liver"}, '{"name": integer}'),
        ({"background": 0, "liver\n\nx": 1}, r"label 'liver\n\nx' is no name"),
        ({"background": 0, " ": 1}, "is no name"),
        ({"background": 0, "\x1b[2Jliver": 1}, "is no name"),
        ({"background": 0, "\ud800": 1}, "no Unicode"),
        ({"background": 0, "liver": 1, "ignore": 2}, '"ignore" is not supported'),
        ({"background": 0, "liver": 1, "Liver ": 2}, "'liver' and 'Liver ' mean the same"),
        ({"background": 0, "LV": 1, "left_ventricle": 2}, "mean the same"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused(folder, labels, fault):
    describe(folder, labels=labels)
    assert fault in faults_of(folder)[0]


def test_several_channels_are_refused(folder):
    describe(folder, channel_names={"0": "T1", "1": "T2"})
    write(folder / "imagesTr/a_0001.nii.gz", image_array())
    channels, file = faults_of(folder)
    assert channels == "dataset.json names 2 channels; a network here takes one."
    assert file == "imagesTr/a_0001.nii.gz is not named CASE_0000.nii.gz."


def test_all_faults_of_files_and_volumes_come_at_once(tmp_path):
    describe(tmp_path, channel_names=None, file_ending=".nrrd", numTraining=12)
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    for name in ("a", "b", "c", "d", "e", "f", "g"):
        write(images / f"{name}_0000.nrrd", image_array())
        write(labels / f"{name}.nrrd", label_array())
    write(images / "alone_0000.nrrd", image_array())
    write(labels / "orphan.nrrd", label_array())
    write(images / "b_0000.nii.gz", image_array())
    bad = image_array()
    bad[0, 1, 2], bad[3, 2, 1] = np.nan, np.inf
    write(images / "a_0000.nrrd", bad)
    write(labels / "c.nrrd", label_array(), origin=(0.0, 1.1, 0.0))
    write(labels / "d.nrrd", np.zeros((4, 5, 7), np.uint8) + 7)
    write(labels / "e.nrrd", np.zeros(SHAPE, np.uint8))
    write(images / "f_0000.nrrd", image_array()[0], spacing=(1.0, 2.0), origin=(0.0, 0.0))
    series = sitk.JoinSeries([sitk.GetImageFromArray(image_array())] * 2)
    sitk.WriteImage(series, str(images / "g_0000.nrrd"))
    whole = (labels / "g.nrrd").read_bytes()
    (labels / "g.nrrd").write_bytes(whole[:-20])

    expected = [
        'dataset.json lacks "channel_names"',
        "imagesTr/b_0000.nii.gz is not named CASE_0000.nrrd",
        "alone: labelsTr/alone.nrrd is missing",
        "orphan: imagesTr/orphan_0000.nrrd is missing",
        "promises 12 training cases, found 7",
        "a: the image holds NaN or infinite values (voxels: 2)",
        "c.nrrd does not lie where its scan does",
        "d.nrrd does not lie where its scan does: 7 x 5 x 4 voxels",
        "d: the label map holds [7]",
        "e: the label map has no foreground",
        "f_0000.nrrd is 2-D",
        "g_0000.nrrd is 4-D",
        "g.nrrd is truncated",
    ]
    faults = faults_of(tmp_path)
    assert len(faults) == len(expected)
    for fault, part in zip(faults, expected, strict=True):
        assert part in fault


def test_nan_in_a_nifti_file_is_a_fault(folder):
    bad = image_array()
    bad[0, 1, 2] = np.nan
    write(folder / "imagesTr/a_0000.nii.gz", bad)
    assert faults_of(folder) == ["a: the image holds NaN or infinite values (voxels: 1)."]


@pytest.mark.parametrize("shift", [0.0019, 0.99, 1.01])
def test_grids_may_differ_by_half_a_voxel_but_more_than_a_thousandth_is_told(folder, shift):
    write(folder / "labelsTr/a.nii.gz", label_array(), origin=(0.0, shift, 0.0))  # 2 mm a voxel
    if shift > 1:
        assert "does not lie where" in faults_of(folder)[0]
    else:
        said = check_dataset(read_dataset(folder))
        assert ["another grid" in line for line in said] == [True] * (shift > 0.002)


def test_a_label_map_that_is_stored_mirrored_is_read_on_the_grid_of_its_scan(folder):
    path = folder / "labelsTr/a.nii.gz"
    sitk.WriteImage(sitk.Flip(sitk.ReadImage(str(path)), (True, False, True)), str(path))
    first, _ = read_dataset(folder).cases
    image, labels = read_case(first)
    np.testing.assert_array_equal(labels.array, label_array())
    assert labels.geometry.matches(image.geometry)
    assert check_dataset(read_dataset(folder)) == [
        "a: The label map: It is stored on another grid than its scan; the nearest voxels were "
        "taken."
    ]


def test_more_labels_than_a_network_tells_apart_are_a_fault(folder):
    describe(folder, labels={"background": 0, **{f"region_{n}": n for n in range(1, 257)}})
    assert faults_of(folder) == ["dataset.json names 256 labels; at most 255 work here."]


def test_labels_are_never_taken_modulo_256():
    assert as_bytes(Path("a.nii.gz"), np.array([0, 255], np.int32)).tolist() == [0, 255]
    with pytest.raises(VolumeError, match=r"a\.nii\.gz holds the label 257"):
        as_bytes(Path("a.nii.gz"), np.array([0, 257], np.int32))


def test_a_case_without_one_organ_is_a_warning(folder):
    write(folder / "labelsTr/b.nii.gz", (label_array() == 2).astype(np.uint8) * 2)
    assert check_dataset(read_dataset(folder)) == ["b: no liver in it."]


def test_negative_and_broken_label_values_are_faults(folder):
    array = label_array().astype(np.int16)
    array[0, 0, 0] = -3
    write(folder / "labelsTr/a.nii.gz", array)
    write(folder / "labelsTr/b.nii.gz", label_array() * np.float32(0.5))
    first, second = faults_of(folder)
    assert "it has the label -3; labels go from 0 to 65535" in first
    assert "not whole numbers" in second


def test_a_case_is_known_by_the_size_of_its_image_and_its_labels(folder):
    case = read_dataset(folder).cases[0]
    before = case_content(case)
    assert case_content(case) == before
    array = label_array()
    array[0, 0, 0] = 1
    write(case.labels, array)
    assert case_content(case) != before
    with pytest.raises(DatasetError, match="a cannot be read"):
        case_content(replace(case, image=folder / "absent"))


def test_an_empty_dataset_is_a_fault(folder):
    for path in [*folder.glob("images*/*"), *folder.glob("labels*/*")]:
        path.unlink()
    describe(folder, numTraining=0)
    assert faults_of(folder) == ["there is no complete case in imagesTr and labelsTr."]
    (folder / "imagesTr").rmdir()
    assert faults_of(folder)[0] == "The folder imagesTr is missing."


@pytest.mark.slow
@pytest.mark.needs_data
def test_the_development_datasets_pass_without_a_warning(data_folder):
    found = {}
    for folder in sorted(data_folder.glob("Dataset*")):
        dataset = read_dataset(folder)
        assert check_dataset(dataset) == []
        found[dataset.name[:10]] = (dataset.modality, len(dataset.labels), len(dataset.cases))
    assert found == {
        "Dataset101": ("CT", 4, 21),
        "Dataset102": ("MR", 4, 10),
        "Dataset201": ("MR", 3, 20),
        "Dataset202": ("MR", 3, 10),
        "Dataset203": ("MR", 3, 4),
        "Dataset301": ("MR", 1, 3),
    }


def elsewhere(folder, **changes):
    """The cases of a dataset named by dataset.json, the files of one outside the folder."""
    (folder / "imagesTr" / "b_0000.nii.gz").rename(folder.parent / "scan_b.nii.gz")
    cases = {
        "b": {"images": [str(folder.parent / "scan_b.nii.gz")], "label": "labelsTr/b.nii.gz"},
        "a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"},
    }
    describe(folder, dataset=cases | changes)


def test_cases_are_read_where_dataset_json_says(folder):
    elsewhere(folder)
    cases = read_dataset(folder).cases
    assert [case.name for case in cases] == ["a", "b"]
    assert cases[1].image == folder.parent / "scan_b.nii.gz"
    assert cases[1].labels == folder / "labelsTr" / "b.nii.gz"
    assert check_dataset(read_dataset(folder)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a": {"images": ["imagesTr/x.nii.gz"], "label": "labelsTr/a.nii.gz"}},
            "x.nii.gz is miss",
        ),
        ({"a": {"images": ["x", "y"], "label": "z"}}, "'a' needs"),
        ({"a": {"images": ["x"]}}, "'a' needs"),
        ({"../a": {"images": ["x"], "label": "z"}}, "'../a' needs .* without slashes"),
        ({"a": 3}, "dataset.json: dataset"),
    ],
)
def test_an_entry_that_does_not_fit_is_a_fault(folder, changes, message):
    elsewhere(folder, **changes)
    with pytest.raises(DatasetError, match=message):
        read_dataset(folder)
