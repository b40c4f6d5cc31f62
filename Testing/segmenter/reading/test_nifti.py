# SPDX-License-Identifier: Apache-2.0
"""NIfTI headers that leave a choice or are odd: the place where Slicer shows them, or a refusal."""

import gzip
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_geometry, read_volume, write_volume

SIZE = (4, 5, 6)
VOXELS = np.arange(120, dtype=np.int16).reshape(SIZE[::-1])
AFFINE = np.diag((-2.0, -2.0, 3.0, 1.0))
AFFINE[:3, 3] = 50, 40, -30


def itk_affine(path) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    return np.diag((-1, -1, 1, 1)) @ affine


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "scan.nii"
    write_volume(path, Volume(VOXELS, Geometry(SIZE, AFFINE)))
    return path


def patch(path, *fields):
    """Overwrite (layout, offset, *values) in a file."""
    raw = bytearray(path.read_bytes())
    for layout, offset, *values in fields:
        struct.pack_into(layout, raw, offset, *values)
    path.write_bytes(raw)


def sform(affine):
    return ("<12f", 280, *affine[:3].ravel())


@settings(max_examples=60, deadline=None)
@given(
    codes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    turn=st.sampled_from([(0, 0, 0), (0, 0, 1e-6), (0.02, 0, 0), (2, 1, -3)]),
    shift=st.sampled_from([0.0, 5e-5, 2e-4, 30.0]),
    scale=st.sampled_from([1.0, 1.5]),
    unit=st.sampled_from([0, 1, 2, 3]),
)
def test_of_two_forms_the_one_is_followed_that_itk_follows(
    tmp_path_factory, codes, turn, shift, scale, unit
):
    path = tmp_path_factory.mktemp("forms") / "scan.nii"
    factor = {1: 1000.0, 3: 0.001}.get(unit, 1.0)
    affine = AFFINE.copy()
    affine[:3] /= factor
    write_volume(path, Volume(VOXELS, Geometry(SIZE, affine)))
    other = affine.copy()
    other[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ other[:3, :3] * scale
    other[:3, 3] += shift
    patch(path, ("<2h", 252, *codes), ("<B", 123, unit), sform(other))
    affine, wanted = read_volume(path).geometry.affine, itk_affine(path)
    np.testing.assert_allclose(affine, wanted, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("code", [1, 2])
def test_forms_that_differ_are_told_with_the_one_that_was_followed(path, code):
    assert read_volume(path).remarks == ()
    other = AFFINE.copy()
    other[:3, 3] += (40, 0, 30)
    patch(path, ("<h", 254, code), sform(other))
    taken, left = ("sform", "qform") if code == 1 else ("qform", "sform")
    volume = read_volume(path)
    assert volume.remarks == (
        f"Its header contradicts itself: by its {left} it would lie up to 50 mm away; its {taken} "
        "was followed, as in Slicer.",
    )
    np.testing.assert_allclose(volume.geometry.affine, other if code == 1 else AFFINE)


def test_a_form_that_makes_no_grid_is_left_for_the_other(path):
    whole = path.read_bytes()
    for fields, lost, kept in (
        ([("<f", 280, np.nan)], "sform", "qform"),
        ([sform(np.zeros((4, 4)))], "sform", "qform"),
        ([("<f", 256, np.nan)], "qform", "sform"),
        ([("<3f", 256, 3.0, 0.0, 0.0)], "qform", "sform"),
        ([("<f", 80, 0.0)], "qform", "sform"),
    ):
        path.write_bytes(whole)
        patch(path, *fields)
        volume = read_volume(path)
        assert volume.remarks == (f"Its {lost} makes no grid; its {kept} was followed.",)
        np.testing.assert_allclose(volume.geometry.affine, AFFINE)


def test_headers_without_any_form_are_told_and_without_any_grid_refused(path):
    patch(path, ("<2h", 252, 0, 0))
    volume = read_volume(path)
    assert "says nothing of its orientation" in volume.remarks[0]
    np.testing.assert_allclose(volume.geometry.affine, itk_affine(path))
    for spacing in (0.0, np.nan):
        patch(path, ("<f", 84, spacing))
        with pytest.raises(VolumeError, match="make no grid"):
            read_volume(path)
    patch(path, ("<2h", 252, 0, 1), ("<f", 280, np.inf))
    with pytest.raises(VolumeError, match="make no grid"):
        read_volume(path)


@pytest.mark.parametrize("offset", [0.0, 348.0, 351.0, 352.5, -1.0, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_that_begin_nowhere_are_refused(path, offset, compressed):
    patch(path, ("<f", 108, offset))
    if compressed:
        path = path.with_suffix(".nii.gz")
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes(), 1))
    with pytest.raises(VolumeError, match="begin at byte"):
        read_volume(path)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        (("<h", 42, 3), "holds more voxels"),
        (("<h", 46, 7), "is truncated"),
        (("<h", 44, 0), "at least one voxel"),
        (("<h", 44, -5), "at least one voxel"),
        (("<4h", 40, 3, 500, 500, 900), "is truncated: it has|announces"),
        (("<h", 40, -3), "-3 dimensions"),
        (("<h", 40, 300), "300 dimensions"),
        (("<2f", 112, 2.0, np.nan), "rescales"),
        (("<B", 345, 105), "is not a NIfTI"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_headers_that_do_not_fit_their_voxels_are_refused(path, field, complaint, compressed):
    patch(path, field)
    if compressed:
        path = path.with_suffix(".nii.gz")
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes(), 1))
    with pytest.raises(VolumeError, match=complaint):
        read_volume(path)


@pytest.mark.parametrize(
    ("affine", "unit"),
    [
        (AFFINE, 1),
        (AFFINE @ np.diag((1000.0, 1000.0, 1000.0, 1.0)), 2),
        (AFFINE @ np.diag((0.001, 0.001, 0.001, 1.0)), 2),
        (AFFINE @ np.diag((1e-30, 1.0, 1.0, 1.0)), 2),
        (AFFINE @ np.diag((1.0, 1.0, 1e30, 1.0)), 2),
    ],
    ids=["metres", "thousandfold", "thousandth", "one edge tiny", "one edge huge"],
)
def test_a_scan_that_is_no_patients_size_is_refused_at_once(path, affine, unit):
    write_volume(path, Volume(VOXELS, Geometry(SIZE, affine)))
    patch(path, ("<B", 123, unit))
    for read in (read_volume, read_geometry):
        with pytest.raises(VolumeError, match="is none of a patient"):
            read(path)


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f8"])
@pytest.mark.parametrize(
    ("version", "name"),
    [
        (nibabel.Nifti2Image, "two.nii"),
        (nibabel.Nifti2Image, "two.nii.gz"),
        (nibabel.Nifti1Pair, "pair.hdr"),
        (nibabel.Nifti2Pair, "pair.hdr"),
    ],
)
def test_nifti_2_and_pairs_of_files_hold_the_voxels_and_the_grid_they_were_given(
    tmp_path, version, name, kind
):
    image = version(VOXELS.T.astype(kind), AFFINE)
    image.header["xyzt_units"] = 2
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / name)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, VOXELS * 0.5 - 3)
    np.testing.assert_allclose(volume.geometry.affine, AFFINE)
    assert volume.remarks == ()


def test_pairs_that_lack_one_file_or_are_of_analyze_are_refused(tmp_path):
    header, voxels = tmp_path / "a.hdr", tmp_path / "a.img"
    nibabel.save(nibabel.Nifti1Pair(VOXELS.T, AFFINE), header)
    with pytest.raises(VolumeError, match=r"give the \.hdr file"):
        read_volume(voxels)
    voxels.write_bytes(voxels.read_bytes()[:-1])
    with pytest.raises(VolumeError, match="truncated"):
        read_volume(header)
    voxels.unlink()
    with pytest.raises(VolumeError, match=r"in a\.img, which is missing"):
        read_volume(header)
    nibabel.save(nibabel.AnalyzeImage(VOXELS.T, AFFINE), header)
    with pytest.raises(VolumeError, match=r"Analyze 7\.5"):
        read_volume(header)


def test_a_nifti_2_file_that_a_transfer_as_text_changed_is_refused(tmp_path):
    path = tmp_path / "two.nii"
    nibabel.save(nibabel.Nifti2Image(VOXELS.T, AFFINE), path)
    patch(path, ("<2B", 8, 10, 10))
    with pytest.raises(VolumeError, match="is not a NIfTI"):
        read_volume(path)


def test_a_form_with_a_negative_code_is_not_used(path):
    patch(path, ("<2h", 252, -32640, -1))
    volume = read_volume(path)
    assert "says nothing of its orientation" in volume.remarks[0]
    np.testing.assert_allclose(volume.geometry.affine, itk_affine(path))


def test_voxel_sizes_that_are_far_from_the_sform_are_refused(path):
    other = AFFINE.copy()
    other[:3, 0] *= 1e9
    patch(path, ("<2h", 252, 0, 1), sform(other))
    with pytest.raises(VolumeError, match="voxel sizes and sform differ"):
        read_volume(path)


@pytest.mark.parametrize("scale", [(1e35, 0.0), (1.0, 1e35), (1.0, np.nan)])
def test_voxels_that_are_rescaled_beyond_measure_are_refused(path, scale):
    patch(path, ("<2f", 112, *scale))
    with pytest.raises(VolumeError, match="rescales its voxels"):
        read_volume(path)


def test_negative_voxel_sizes_are_told(path):
    patch(path, ("<f", 80, -2.0))
    volume = read_volume(path)
    assert "negative voxel sizes" in volume.remarks[-1]
    assert (volume.geometry.spacing > 0).all()
