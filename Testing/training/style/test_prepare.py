# SPDX-License-Identifier: Apache-2.0
"""The direction that all scans of a dataset are sliced across."""

import numpy as np
import pytest

from srcsm_training.data.dataset import Case
from srcsm_training.style.prepare import slice_axes
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import write_volume

AXIAL = np.diag([-1.0, -1.0, 5.0])
AXIAL_AS_STORED_BY_OTHERS = AXIAL[:, [2, 0, 1]]  # slices lie across I
CORONAL = np.diag([-1.0, -5.0, 1.0])
OBLIQUE = np.array([[-0.8, 0, 3.0], [0, -1.0, 0], [0.6, 0, 4.0]])  # by 37 degrees


@pytest.mark.parametrize(
    ("scans", "expected"),
    [
        ((AXIAL, AXIAL, CORONAL), "KKK"),
        ((AXIAL, AXIAL_AS_STORED_BY_OTHERS), "KI"),
        ((CORONAL, CORONAL, AXIAL, AXIAL_AS_STORED_BY_OTHERS, CORONAL), "JJJKJ"),
        ((AXIAL, OBLIQUE), "KK"),
    ],
    ids=["the majority's", "one direction, two axes", "coronal", "oblique"],
)
def test_all_scans_are_sliced_across_one_direction(tmp_path, scans, expected):
    cases = []
    for number, axes in enumerate(scans):
        affine = np.eye(4)
        affine[:3, :3] = axes
        path = tmp_path / f"{number}.nii.gz"
        write_volume(path, Volume(np.zeros((4, 5, 6), np.int16), Geometry((6, 5, 4), affine)))
        cases.append(Case(str(number), path, None))
    assert "".join(slice_axes(cases, "auto").values()) == expected
    assert set(slice_axes(cases, "J").values()) == {"J"}
