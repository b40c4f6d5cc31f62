# SPDX-License-Identifier: Apache-2.0
"""Label maps on the grid of their scan: the same place in the patient, or a refusal."""

from pathlib import Path

import numpy as np
import pytest
from geometries import oblique_left_handed

from SRCSMSegmenterLib.alignment import on_grid
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume

PATH = Path("labels.nii.gz")
GRID = oblique_left_handed((7, 5, 4))


def labels(dtype=np.uint16) -> np.ndarray:
    return np.arange(140, dtype=dtype).reshape(4, 5, 7) + 200


def stored(array: np.ndarray, matrix, offset) -> Volume:
    """A volume whose voxel index times `matrix` plus `offset` is that of `GRID`."""
    to_grid = np.eye(4)
    to_grid[:3, :3], to_grid[:3, 3] = matrix, offset
    return Volume(array, Geometry(array.shape[::-1], GRID.affine @ to_grid))


def test_the_same_grid_is_left_as_it_is():
    volume = Volume(labels(), GRID)
    assert on_grid(volume, GRID, PATH) is volume


def test_mirrored_and_permuted_axes_give_every_voxel_back():
    mirrored = stored(labels()[:, ::-1, ::-1], np.diag((-1, -1, 1)), (6, 4, 0))
    permuted = stored(labels().transpose(1, 2, 0), np.eye(3)[:, (2, 0, 1)], (0, 0, 0))
    for volume in (mirrored, permuted):
        read = on_grid(volume, GRID, PATH)
        np.testing.assert_array_equal(read.array, labels())
        assert read.array.dtype == np.uint16
        assert read.geometry is GRID
        assert "another grid" in read.remarks[0]


def test_a_finer_grid_in_the_same_box_is_sampled_at_the_nearest_voxels():
    finer = labels().repeat(3, 0).repeat(3, 2)
    volume = stored(finer, np.diag((1 / 3, 1, 1 / 3)), (-1 / 3, 0, -1 / 3))
    np.testing.assert_array_equal(on_grid(volume, GRID, PATH).array, labels())


@pytest.mark.parametrize(
    ("array", "offset"),
    [
        (labels(), (0, 0, 1)),
        (labels(), (-0.6, 0, 0)),
        (labels()[1:], (0, 0, 0)),
        (labels()[:, 1:], (0, 1, 0)),
        (np.zeros((4, 5, 9), np.uint8), (-1, 0, 0)),
    ],
    ids=["a slice off", "0.6 voxels off", "lost slices", "a crop", "larger"],
)
def test_what_does_not_fill_the_same_box_is_refused(array, offset):
    with pytest.raises(VolumeError, match=r"labels\.nii\.gz does not lie where its scan does"):
        on_grid(stored(array, np.eye(3), offset), GRID, PATH)
