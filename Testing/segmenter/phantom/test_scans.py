# SPDX-License-Identifier: Apache-2.0
"""The phantom: one anatomy, two scanners that disagree about contrast, grids of every kind."""

import json
from dataclasses import replace

import numpy as np
import pytest

from srcsm_training.data.dataset import check_dataset, read_dataset
from srcsm_training.data.phantom import write_dataset
from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.phantom import anatomy
from SRCSMSegmenterLib.phantom import scans as phantom
from SRCSMSegmenterLib.phantom.anatomy import LABELS, TISSUES, draw_patient
from SRCSMSegmenterLib.phantom.scans import INDEX, MODALITIES, make_case
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

SEEDS = (4, 7)  # the CT of patient 4 is stored with permuted axes
ORGANS = {name: label for name, label in LABELS.items() if label}


@pytest.fixture(scope="module")
def scans():
    return {
        (seed, modality): make_case(seed, modality) for seed in SEEDS for modality in MODALITIES
    }


def patient(seed):
    return draw_patient(np.random.default_rng([seed, 0]))


def centroid(labels, label):
    """RAS mm of the middle of one organ."""
    return labels.geometry.to_ras(np.argwhere(labels.array == label)[:, ::-1].mean(axis=0))


def millilitres(labels, label):
    voxel = abs(np.linalg.det(labels.geometry.affine[:3, :3])) / 1000
    return (labels.array == label).sum() * voxel


def test_the_same_seed_gives_the_same_scan_bit_for_bit_and_another_seed_another(scans):
    image, labels = make_case(7, "MR")
    np.testing.assert_array_equal(image.array, scans[7, "MR"][0].array)
    np.testing.assert_array_equal(labels.array, scans[7, "MR"][1].array)
    np.testing.assert_array_equal(image.geometry.affine, scans[7, "MR"][0].geometry.affine)
    organs = [millilitres(scans[seed, "MR"][1], 1) for seed in SEEDS]
    assert abs(organs[0] - organs[1]) > 50


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_organ_has_the_size_of_an_organ(scans, seed, modality):
    labels = scans[seed, modality][1]
    plausible = {"liver": (800, 2500), "spleen": (60, 500)}
    for name, label in ORGANS.items():
        low, high = plausible.get(name, (60, 300))
        assert low < millilitres(labels, label) < high, name


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_right_is_right_in_ras(scans, seed, modality):
    labels = scans[seed, modality][1]
    liver, right_kidney, left_kidney, spleen = (centroid(labels, n) for n in ORGANS.values())
    assert liver[0] > spleen[0] + 80
    assert right_kidney[0] > left_kidney[0] + 80
    assert liver[2] > right_kidney[2] + 20
    assert liver[1] > right_kidney[1] + 10


@pytest.mark.parametrize("seed", SEEDS)
def test_both_modalities_show_the_same_patient_at_the_same_place(scans, seed):
    (_, ct), (_, mr) = scans[seed, "CT"], scans[seed, "MR"]
    assert not ct.geometry.matches(mr.geometry)
    for label in ORGANS.values():
        assert np.linalg.norm(centroid(ct, label) - centroid(mr, label)) < 1.0
        assert millilitres(ct, label) == pytest.approx(millilitres(mr, label), rel=0.03)


@pytest.mark.parametrize("modality", MODALITIES)
def test_image_and_labels_share_grid_and_types(scans, modality):
    image, labels = scans[4, modality]
    assert image.geometry.matches(labels.geometry)
    assert image.array.dtype == np.int16
    assert labels.array.dtype == np.uint8
    assert set(np.unique(labels.array)) == set(LABELS.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_contrasts_between_neighbours_turn_round_between_the_modalities(scans, seed):
    def means(modality):
        image, _ = scans[seed, modality]
        tissues = phantom.paint(patient(seed), image.geometry)
        names = list(INDEX)
        return {names[n]: image.array[tissues == n].mean() for n in np.unique(tissues)}

    ct, mr = means("CT"), means("MR")
    brighter_in_ct = [
        ("cortical_bone", "right_cortex"),
        ("vein", "liver"),
        ("artery", "soft"),
        ("hepatic_vessel", "liver"),
        ("liver", "fluid"),
        ("spleen", "fluid"),
        ("right_cortex", "right_medulla"),
        ("left_cortex", "left_medulla"),
        ("heart", "gut_wall"),
    ]
    for bright, dark in brighter_in_ct:
        assert ct[bright] > ct[dark], (bright, dark)
        assert mr[bright] < mr[dark], (bright, dark)
    assert ct["visceral_fat"] < ct["muscle"] < ct["liver"] < ct["right_medulla"]
    assert mr["visceral_fat"] < mr["muscle"] < mr["liver"] < mr["spleen"] < mr["fluid"]


def test_air_is_minus_1000_in_ct_and_positive_noise_in_mr(scans):
    for modality, low, high in (("CT", -1024, -990), ("MR", 1, 60)):
        image, _ = scans[7, modality]
        air = image.array[phantom.paint(patient(7), image.geometry) == INDEX["air"]]
        assert low < np.median(air) < high
    assert scans[7, "MR"][0].array.min() >= 0


def test_grids_are_anisotropic_oblique_and_of_either_handedness():
    grids = {
        modality: [
            phantom._draw_grid(np.random.default_rng([seed, 1]), patient(seed), modality)
            for seed in range(12)
        ]
        for modality in MODALITIES
    }
    for modality, (low, high) in {"CT": (295, 455), "MR": (240, 285)}.items():
        extents = [grid.size[2] * grid.spacing[2] for grid in grids[modality]]
        assert low < min(extents)
        assert max(extents) < high
    for grid in grids["CT"] + grids["MR"]:
        assert grid.spacing[2] > 1.3 * grid.spacing[0]
    handedness = [np.linalg.det(grid.direction) for grid in grids["CT"] + grids["MR"]]
    assert min(handedness) == pytest.approx(-1)
    assert max(handedness) == pytest.approx(1)
    tilts = [np.degrees(np.arccos(np.abs(grid.direction[2, 2]))) for grid in grids["CT"]]
    assert max(tilts) > 5
    assert max(tilts) <= 15


def test_axes_are_permuted_at_times(scans):
    thick = {int(np.argmax(image.geometry.spacing)) for image, _ in scans.values()}
    assert 2 in thick
    assert thick - {2}


def test_permuting_the_axes_leaves_every_voxel_where_it_is():
    array = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    affine = np.array([[0, 2, 0.5, 7], [1, 0, 0, -3], [0, 0.25, -4, 11], [0, 0, 0, 1.0]])
    geometry = Geometry((5, 3, 2), affine)
    stored = phantom._permuted(array, geometry, np.array([2, 0, 1]))
    assert stored.geometry.size == (2, 5, 3)
    i, j, k = 4, 1, 0
    assert stored.array[j, i, k] == array[k, j, i]
    np.testing.assert_allclose(stored.geometry.to_ras((k, i, j)), geometry.to_ras((i, j, k)))


def test_the_central_point_of_a_slice_is_the_voxels_centre_and_the_ends_lie_inside():
    affine = np.array([[0, 2, 0.5, 7], [1, 0, 0, -3], [0, 0.25, -4, 11], [0, 0, 0, 1.0]])
    geometry = Geometry((5, 3, 2), affine)
    fine = phantom._supersampled(geometry, 5)
    np.testing.assert_allclose(fine.to_ras((4, 1, 5 + 2)), geometry.to_ras((4, 1, 1)))
    np.testing.assert_allclose(geometry.to_ijk(fine.to_ras((4, 1, 5))), (4, 1, 0.6))


def test_a_voxel_is_the_average_of_its_tissues():
    tissues = np.full((2, 5, 40, 40), INDEX["air"], np.uint8)
    tissues[:, 3:] = INDEX["muscle"]
    look = TISSUES["muscle"].ct
    image = phantom._intensities(np.random.default_rng(3), tissues, "CT", np.array([2.0, 2, 7]))
    assert image.shape == (2, 40, 40)
    assert image.mean() == pytest.approx(0.6 * -1000 + 0.4 * look.mean, abs=look.spread)


# Waist and bends beyond any patient's, so that a box without room for either would show.
def test_gut_pressed_twice_into_one_corner_has_no_piece_without_length():
    pressed = draw_patient(np.random.default_rng(19))  # one such loop of bowel
    with np.errstate(all="raise"):
        for shape in pressed.shapes:
            shape.inside(np.stack([shape.low, shape.high]).T.astype(np.float32))


@pytest.mark.parametrize(("waist", "bend"), [(0.25, 0), (0.05, 4)])
def test_no_shape_sticks_out_of_its_bounding_box(monkeypatch, waist, bend):
    monkeypatch.setattr(anatomy, "WAIST", waist)
    someone = patient(5)
    someone = replace(someone, amplitudes=bend * someone.amplitudes)
    affine = np.diag([9.0, 8, 11, 1])
    affine[:3, 3] = someone.to_ras(np.array([-200.0, -160, -260]))
    affine[0, 2], affine[2, 1] = 1.5, -1.2
    grid = Geometry((45, 40, 44), affine)
    boxed = phantom.paint(someone, grid)
    monkeypatch.setattr(phantom, "_box", lambda *_: (slice(None),) * 3)
    np.testing.assert_array_equal(boxed, phantom.paint(someone, grid))


def test_a_written_dataset_is_a_faultless_nnunet_dataset(tmp_path, scans):
    write_dataset(tmp_path / "mr", "MR", cases=1, seed=4)
    dataset = read_dataset(tmp_path / "mr")
    assert check_dataset(dataset) == []
    assert dataset.modality == "MR"
    assert dataset.labels == ORGANS
    image, labels = scans[4, "MR"]
    read = read_volume(dataset.cases[0].image), read_labels(dataset.cases[0].labels)
    np.testing.assert_array_equal(read[0].array, image.array)
    np.testing.assert_array_equal(read[1].array, labels.array)
    assert read[0].geometry.matches(image.geometry)
    assert json.loads((tmp_path / "mr" / "dataset.json").read_text("utf-8"))["numTraining"] == 1


def test_a_folder_with_other_cases_is_refused_and_left_alone(tmp_path):
    other = tmp_path / "labelsTr" / "mine.nii.gz"
    other.parent.mkdir()
    other.touch()
    with pytest.raises(DatasetError, match=r"mine\.nii\.gz"):
        write_dataset(tmp_path, "CT", cases=1, seed=0)
    assert [path.name for path in tmp_path.rglob("*.nii.gz")] == ["mine.nii.gz"]
