# SPDX-License-Identifier: Apache-2.0
"""Published downloads, as tiny stand-ins of their layouts, become datasets without faults."""

import numpy as np
import pytest
from matplotlib.image import imsave

from srcsm_training.cli.prepare_data import NAMES
from srcsm_training.data.dataset import check_dataset, read_dataset
from srcsm_training.data.downloads import DOWNLOADS, prepare_download
from srcsm_training.segmentation.presets import preset
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_volume

GRID = Geometry((6, 5, 4), np.diag([-1.5, -1.5, 3.0, 1.0]))


def write(path, *values):
    """Write a volume whose first voxels have the given values, the others 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(GRID.shape, np.int16)
    array.flat[: len(values)] = values
    write_volume(path, Volume(array, GRID))


def mmwhs(folder):
    for modality in ("ct", "mr"):
        case = folder / f"{modality}_train" / f"{modality}_train_1001"
        write(case.with_name(f"{case.name}_image.nii.gz"), 7, 8)
        labels = (500, 600, 420, 550, 205, 820, 850, 421)
        write(case.with_name(f"{case.name}_label.nii.gz"), *labels)


def mnms2(folder):
    for phase in ("ED", "ES"):
        write(folder / "001" / f"001_SA_{phase}.nii.gz", 5)
        write(folder / "001" / f"001_SA_{phase}_gt.nii.gz", 1, 2, 3)


def six_sites(folder):
    for site, word in (("RUNMC", "segmentation"), ("HCRUDB", "Segmentation")):
        write(folder / site / "Case00.nii.gz", 5)
        write(folder / site / f"Case00_{word}.nii.gz", 1, 2)


def verse(folder):
    write(folder / "rawdata" / "sub-1" / "sub-1_ct.nii.gz", 5)
    write(folder / "derivatives" / "sub-1" / "sub-1_seg-vert_msk.nii.gz", 19, 20, 24, 25, 26)


def spider(folder):
    write(folder / "images" / "1_t2.mha", 5)
    write(folder / "masks" / "1_t2.mha", 1, 5, 6, 100, 201)


def montgomery(folder):
    for part, rows in (
        ("CXR_png", [[0, 9, 9], [8, 0, 0]]),
        ("ManualMask/leftMask", [[0, 255, 0]] * 2),
        ("ManualMask/rightMask", [[0, 0, 255]] * 2),
    ):
        (folder / part).mkdir(parents=True)
        path = folder / part / "MCUCXR_0001_0.png"
        imsave(path, np.array(rows, np.uint8), cmap="gray", vmin=0, vmax=255)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        (
            "mm-whs",
            mmwhs,
            {
                "Dataset211_HeartCT": {"ct_train_1001": [1, 2, 3, 4, 5, 6, 7, 3]},
                "Dataset212_HeartMR": {"mr_train_1001": [1, 2, 3, 4, 5, 6, 7, 3]},
            },
        ),
        (
            "mnms-2",
            mnms2,
            {"Dataset221_HeartMnMs2": {"001_SA_ED": [1, 2, 3], "001_SA_ES": [1, 2, 3]}},
        ),
        (
            "prostate-six-sites",
            six_sites,
            {
                "Dataset311_ProstateRUNMC": {"runmc_case00": [1, 1]},
                "Dataset313_ProstateI2CVB": {"i2cvb_case00": [1, 1]},
            },
        ),
        ("verse", verse, {"Dataset401_SpineCT": {"sub-1": [0, 1, 1, 1, 0]}}),
        ("spider", spider, {"Dataset402_SpineMR": {"1_t2": [1, 1, 0, 0, 0]}}),
        ("montgomery", montgomery, {"Dataset411_ChestXray": {"MCUCXR_0001_0": [0, 1, 1, 0, 1, 1]}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_download_becomes_datasets_without_faults(tmp_path, name, make, expected):
    make(tmp_path / "download")
    folders = prepare_download(name, tmp_path / "download", tmp_path / "data")
    assert [folder.name for folder in folders] == list(expected)
    for folder in folders:
        dataset = read_dataset(folder)
        check_dataset(dataset)
        assert dataset.modality == DOWNLOADS[name].datasets[folder.name]
        assert dataset.labels == DOWNLOADS[name].labels
        assert [case.name for case in dataset.cases] == list(expected[folder.name])
        for case in dataset.cases:
            values = expected[folder.name][case.name]
            assert read_labels(case.labels).array.flat[: len(values)].tolist() == values


def test_an_xray_lies_as_a_reader_looks_at_it(tmp_path):
    montgomery(tmp_path / "download")
    [folder] = prepare_download("montgomery", tmp_path / "download", tmp_path / "data")
    image = read_volume(read_dataset(folder).cases[0].image)
    assert image.array[0].tolist() == [[0, 9, 9], [8, 0, 0]]
    np.testing.assert_array_equal(image.geometry.direction[:, 0], [-1, 0, 0])  # to the left
    np.testing.assert_array_equal(image.geometry.direction[:, 1], [0, 0, -1])  # downwards


def place_of_brightest(volume, preset_name):
    """Say on which side of its window's middle along I and J the brightest voxel lies, -1 or 1."""
    grid = preset(preset_name).grid
    window = grid.placed(volume.geometry.centre, grid.directions_over(volume.geometry))
    brightest = np.unravel_index(volume.array.argmax(), volume.array.shape)[::-1]
    i, j, _ = window.to_ijk(volume.geometry.to_ras(brightest)) - (np.array(grid.size) - 1) / 2
    return np.sign((i, j)).tolist()


def stored(order, bright):
    """Return a scan of 40 x 30 x 20 mm that is bright at one point.

    Args:
        order: direction in the patient of each voxel axis: "LPS" is an axial stack as of DICOM.
        bright: RAS mm from the scan's middle.
    """
    affine, size = np.eye(4), {"LR": 40, "AP": 30, "SI": 20}
    ends = {letter: pair for pair in size for letter in pair}
    for axis, letter in enumerate(order):
        direction = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[letter]
        affine[:3, axis] = np.eye(3)[direction] * (1 if letter in "RAS" else -1)
    geometry = Geometry(tuple(size[ends[letter]] for letter in order), affine)
    array = np.zeros(geometry.shape, np.int16)
    i, j, k = np.rint(geometry.to_ijk(geometry.centre + bright)).astype(int)
    array[k, j, i] = 9
    return Volume(array, geometry)


@pytest.mark.parametrize("order", ["LPS", "RAS", "LIP", "LSA", "PSR"])
def test_chest_cts_of_any_storage_and_radiographs_come_out_the_same_way_up(tmp_path, order):
    for part in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"):
        picture = np.zeros((60, 50), np.uint8)
        picture[10, 40] = 255  # at the top on the viewer's right: the apex of the left lung
        (tmp_path / part).mkdir(parents=True)
        imsave(tmp_path / part / "a.png", picture, cmap="gray", vmin=0, vmax=255)
    [folder] = prepare_download("montgomery", tmp_path, tmp_path / "data")
    radiograph = read_volume(read_dataset(folder).cases[0].image)
    scan = stored(order, (-12, 0, 6))  # to the left, upwards
    assert place_of_brightest(scan, "icm-chest") == place_of_brightest(radiograph, "icm-chest")
    assert place_of_brightest(scan, "icm-chest") == [-1, 1]


@pytest.mark.parametrize("order", ["LPS", "PIR", "PSL", "RAS"])
def test_spines_of_any_storage_come_out_the_same_way_up(order):
    assert place_of_brightest(stored(order, (0, 9, -6)), "icm-spine") == [1, -1]


def test_all_missing_files_are_named_before_anything_is_written(tmp_path):
    mnms2(tmp_path / "download")
    (tmp_path / "download" / "001" / "001_SA_ED.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"001_SA_ED\.nii\.gz"):
        prepare_download("mnms-2", tmp_path / "download", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_another_folder_is_answered_with_the_layout(tmp_path):
    with pytest.raises(DatasetError, match="RUNMC/Case00"):
        prepare_download("prostate-six-sites", tmp_path, tmp_path / "data")
    with pytest.raises(ConfigError, match="did you mean mnms-2"):
        prepare_download("mnms2", tmp_path, tmp_path / "data")


def test_values_that_are_no_labels_are_a_fault(tmp_path):
    spider(tmp_path / "download")
    write(tmp_path / "download" / "masks" / "1_t2.mha", 1, 77)
    with pytest.raises(DatasetError, match=r"\[77\]"):
        prepare_download("spider", tmp_path / "download", tmp_path / "data")
    assert not list(tmp_path.rglob("dataset.json"))


def test_the_command_knows_all_downloads():
    assert tuple(DOWNLOADS) == NAMES
