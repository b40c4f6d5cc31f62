# SPDX-License-Identifier: Apache-2.0
"""DICOM Segmentation objects: valid, of their source, and the same voxels for every reader."""

import shutil
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk
from geometries import oblique_left_handed

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed: srcsm[dicom]")
import pydicom  # noqa: E402
from dicom_series import LPS, write_enhanced, write_slices  # noqa: E402

from SRCSMSegmenterLib.dicom_segmentation import (  # noqa: E402
    Algorithm,
    is_dicom,
    read_segmentation,
    source_headers,
    write_segmentation,
)
from SRCSMSegmenterLib.errors import VolumeError  # noqa: E402
from SRCSMSegmenterLib.geometry import Geometry, Volume  # noqa: E402
from SRCSMSegmenterLib.terminology import segment_for  # noqa: E402

GRID = oblique_left_handed((7, 6, 5)).mirrored()
SEGMENTS = tuple(segment_for(n, v) for v, n in enumerate(("liver", "right_kidney", "spleen"), 1))
ALGORITHM = Algorithm("abdomen-ct", "1.2", {"source matching": "on"})


def labels():
    """Liver and kidney; the outermost slices are empty and there is no spleen."""
    array = np.zeros(GRID.shape, np.uint8)
    array[1:4, 2:4, 2:6] = 1
    array[2, 0:2, 0:3] = 2
    return Volume(array, GRID)


@pytest.fixture(params=[write_slices, write_enhanced], ids=["slices", "enhanced"])
def series(request, tmp_path):
    """Series UID and headers of a source."""
    folder, intensities = tmp_path / "scan", np.random.default_rng(0).integers(0, 900, GRID.shape)
    uid = request.param(folder, Volume(intensities.astype(np.int16), GRID))
    files = sorted(folder.iterdir())
    return uid, [pydicom.dcmread(file, stop_before_pixels=True) for file in files]


@pytest.fixture
def written(series, tmp_path):
    """The object made of `labels`."""
    path = tmp_path / "organs.dcm"
    write_segmentation(path, labels(), SEGMENTS, series[1], ALGORITHM)
    return path


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is missing")
def test_dciodvfy_finds_no_fault(written):
    told = subprocess.run(["dciodvfy", "-new", str(written)], capture_output=True, text=True)
    assert told.stderr.split() == ["Segmentation"]


def test_highdicom_reads_the_same_voxels(written):
    read, names = read_segmentation(written)
    assert names == {1: "liver", 2: "right_kidney", 3: "spleen"}
    expected = labels()
    k, j, i = np.nonzero(read.array)
    at = GRID.to_ijk(read.geometry.to_ras(np.stack([i, j, k], axis=1)))
    np.testing.assert_allclose(at, np.rint(at), atol=1e-4)
    i, j, k = np.rint(at).astype(int).T
    assert len(k) == np.count_nonzero(expected.array)
    assert np.array_equal(read.array[read.array > 0], expected.array[k, j, i])


def test_simpleitk_reads_the_same_voxels(written):
    """ITK reads frames in their order, and leaves it to the caller what each of them is."""
    header = pydicom.dcmread(written, stop_before_pixels=True)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(written)))
    read, to_ijk = np.zeros_like(labels().array), np.linalg.inv(LPS @ GRID.affine)
    assert len(frames) == len(header.PerFrameFunctionalGroupsSequence) == 4
    for frame, about in zip(frames, header.PerFrameFunctionalGroupsSequence, strict=True):
        position = [float(x) for x in about.PlanePositionSequence[0].ImagePositionPatient]
        k = round((to_ijk @ [*position, 1])[2])
        number = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        read[k][frame > 0] = number
    assert np.array_equal(read, labels().array)


def test_the_object_names_its_source_its_terms_and_its_algorithm(written, series):
    uid, sources = series
    header = pydicom.dcmread(written, stop_before_pixels=True)
    referenced = header.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == uid
    instances = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert instances == {source.SOPInstanceUID for source in sources}
    assert header.StudyInstanceUID == sources[0].StudyInstanceUID
    assert header.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert (header.PatientID, header.Modality) == ("P1", "SEG")
    kidney = header.SegmentSequence[1]
    term = kidney.SegmentedPropertyTypeCodeSequence[0]
    side = term.SegmentedPropertyTypeModifierCodeSequence[0]
    found = [(c.CodeValue, c.CodingSchemeDesignator, c.CodeMeaning) for c in (term, side)]
    assert found == [("64033007", "SCT", "Kidney"), ("24028007", "SCT", "Right")]
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("abdomen-ct", "1.2")
    assert "source matching" in str(algorithm.AlgorithmParameters)
    tracked = {(s.TrackingID, s.TrackingUID) for s in header.SegmentSequence}
    assert {name for name, _ in tracked} == {"liver", "right_kidney", "spleen"}
    assert len({uid for _, uid in tracked}) == 3
    first = header.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    assert first.SourceImageSequence[0].ReferencedSOPInstanceUID in instances


def test_labels_with_gaps_and_labels_of_nothing_are_refused(series, tmp_path):
    path = tmp_path / "organs.dcm"
    path.write_bytes(b"older")
    gaps = [segment_for("liver", 1), segment_for("spleen", 4)]
    empty = Volume(np.zeros(GRID.shape, np.uint8), GRID)
    for array, segments, message in (
        (labels(), gaps, "without gaps"),
        (empty, SEGMENTS, "no organ was found"),
    ):
        with pytest.raises(VolumeError, match=message):
            write_segmentation(path, array, segments, series[1], ALGORITHM)
    assert path.read_bytes() == b"older"


def test_a_source_that_lacks_what_the_standard_requires_is_named(series, tmp_path):
    for source in series[1]:
        del source.FrameOfReferenceUID
    with pytest.raises(VolumeError, match="FrameOfReferenceUID is missing"):
        write_segmentation(tmp_path / "organs.dcm", labels(), SEGMENTS, series[1], ALGORITHM)
    assert not (tmp_path / "organs.dcm").exists()


def test_what_is_no_segmentation_is_refused(series, tmp_path):
    image = next((tmp_path / "scan").iterdir())
    (tmp_path / "text.dcm").write_text("no DICOM")
    for path, message in (
        (image, "could not be read as DICOM"),
        (tmp_path / "text.dcm", "is not a DICOM file"),
        (tmp_path / "gone.dcm", "There is no file"),
    ):
        with pytest.raises(VolumeError, match=message):
            read_segmentation(path)
    assert is_dicom(image)
    assert not is_dicom(tmp_path / "text.dcm")
    assert not is_dicom(tmp_path / "gone.dcm")


def test_what_no_segmentation_can_reference_is_told_before_the_work(tmp_path):
    scan = Volume(np.zeros(GRID.shape, np.int16), GRID)
    uid = write_slices(tmp_path / "a", scan, "T2 axial")
    assert len(source_headers(tmp_path / "a", "T2 axial", GRID)) == GRID.size[2]
    assert {h.SeriesInstanceUID for h in source_headers(tmp_path / "a", uid, GRID)} == {uid}
    affine = GRID.affine.copy()
    affine[:3, 2] += 0.3 * affine[:3, 0]
    with pytest.raises(VolumeError, match="tilted gantry"):
        source_headers(tmp_path / "a", None, Geometry(GRID.size, affine))
    for n in range(2):
        write_enhanced(tmp_path / "b", scan)
        (tmp_path / "b" / "enhanced.dcm").rename(tmp_path / "b" / f"{n}.dcm")
    for n in range(2):  # one series
        header = pydicom.dcmread(tmp_path / "b" / f"{n}.dcm")
        header.SeriesInstanceUID = "1.2.3"
        header.save_as(tmp_path / "b" / f"{n}.dcm")
    with pytest.raises(VolumeError, match="several multi-frame files"):
        source_headers(tmp_path / "b", None, GRID)
    header = pydicom.dcmread(tmp_path / "a" / "1.dcm")
    del header.FrameOfReferenceUID
    header.save_as(tmp_path / "a" / "1.dcm")
    with pytest.raises(VolumeError, match="lacks FrameOfReferenceUID"):
        source_headers(tmp_path / "a", None, GRID)
