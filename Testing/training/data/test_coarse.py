# SPDX-License-Identifier: Apache-2.0
"""Coarse segmentations of every format come to lie on the scan's grid, or are refused."""

import numpy as np
import pytest
from geometries import oblique_left_handed

from srcsm_training.data.coarse import read_coarse
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.volume_io import write_labels

GRID = oblique_left_handed((7, 6, 5))
SEGMENTS = [segment_for("liver", 1), segment_for("spleen", 2)]


def labels():
    array = np.zeros(GRID.shape, np.uint8)
    array[1:4, 2:4, 2:6] = 1
    array[2, 0:2, 0:3] = 2
    return array


def masks(path):
    return {organ.name: organ.mask for organ in read_coarse(path, None, GRID)}


def assert_read(path):
    found = masks(path)
    assert found.keys() == {"liver", "spleen"}
    assert np.array_equal(found["liver"], labels() == 1)
    assert np.array_equal(found["spleen"], labels() == 2)


@pytest.mark.parametrize("grid", [GRID, GRID.mirrored()], ids=["left", "right"])
def test_a_dicom_segmentation_lies_on_the_scan_again(tmp_path, grid):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom", reason="highdicom is not installed: srcsm[dicom]")
    from dicom_series import write_slices

    from SRCSMSegmenterLib.dicom_segmentation import Algorithm, write_segmentation

    array = labels() if grid is GRID else labels()[::-1]
    write_slices(tmp_path / "scan", Volume(np.zeros(grid.shape, np.int16), grid))
    sources = [pydicom.dcmread(file) for file in (tmp_path / "scan").iterdir()]
    path = tmp_path / "organs"  # as many archives name their files
    write_segmentation(path, Volume(array, grid), SEGMENTS, sources, Algorithm("net", "1"))
    assert_read(path)


def test_cropped_and_turned_labels_lie_on_the_scan_again(tmp_path):
    affine = GRID.affine @ [[0, 0, 1, 0], [0, -1, 0, 5], [1, 0, 0, 1], [0, 0, 0, 1]]
    turned = np.ascontiguousarray(labels()[1:, ::-1].transpose(2, 1, 0))
    path = tmp_path / "organs.seg.nrrd"
    write_labels(path, Volume(turned, Geometry(turned.shape[::-1], affine)), SEGMENTS)
    assert_read(path)


@pytest.mark.parametrize("shift", [(0.3, 0, 0), (0, 0, 4), (0, -1, 0)])
def test_labels_between_the_scans_voxels_or_outside_are_refused(tmp_path, shift):
    affine = GRID.affine.copy()
    affine[:3, 3] = GRID.to_ras(shift)
    path = tmp_path / "organs.seg.nrrd"
    write_labels(path, Volume(labels(), Geometry(GRID.size, affine)), SEGMENTS)
    with pytest.raises(VolumeError, match="does not lie on the scan's grid"):
        read_coarse(path, None, GRID)


def test_labels_of_coarser_voxels_are_refused(tmp_path):
    affine = GRID.affine @ np.diag((2.0, 2.0, 2.0, 1.0))
    path = tmp_path / "organs.seg.nrrd"
    write_labels(
        path, Volume(labels()[:2, :2, :2] + np.uint8(1), Geometry((2, 2, 2), affine)), SEGMENTS
    )
    with pytest.raises(VolumeError, match="does not lie on the scan's grid"):
        read_coarse(path, None, GRID)
