# SPDX-License-Identifier: Apache-2.0
"""Views of slices: which slice, which way round, and its picture."""

import numpy as np
import pytest

from srcsm_training.evaluation.slice_views import draw_view, most_wrong_slice
from SRCSMSegmenterLib.geometry import Geometry, Volume

LABELS = {"liver": 1, "spleen": 2}


@pytest.mark.parametrize(
    ("axes", "through"),
    [
        # Columns: the directions (RAS) of I, J, K, in mm a voxel.
        (np.diag([-1.0, -2.0, 5.0]), 2),  # I to the left, J to posterior: shown as stored
        (np.diag([1.0, 2.0, 5.0]), 2),  # both turned round
        (np.array([[0, 5.0, 0], [0, 0, 2.0], [1.0, 0, 0]]), 1),  # I superior, J right, K anterior
        (np.array([[0, 0, -1.0], [5.0, 0, 0], [0, -2.0, 0]]), 0),
    ],
)
def test_slices_are_shown_with_right_on_the_left_and_anterior_or_superior_on_top(axes, through):
    affine = np.eye(4)
    affine[:3, :3] = axes
    geometry = Geometry((4, 5, 6), affine)
    ijk = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), axis=-1)
    ras = geometry.to_ras(ijk).transpose(2, 1, 0, 3)  # of every voxel, (K, J, I, 3)
    truth = np.zeros(geometry.shape, np.uint8)
    wrong = [slice(None)] * 3
    wrong[2 - through] = 3
    truth[tuple(wrong)] = 1
    views = [
        most_wrong_slice(Volume(ras[..., n], geometry), np.zeros_like(truth), truth, {"organ": 1})
        for n in range(3)
    ]
    assert all(view.index == 3 for view in views)
    assert all(view.truth.all() and not view.prediction.any() for view in views)
    steps = [(np.diff(view.image, axis=0), np.diff(view.image, axis=1)) for view in views]
    normal = int(np.argmax(np.abs(geometry.direction[:, through])))
    row, column = {0: (2, 1), 1: (2, 0), 2: (1, 0)}[normal]
    if normal == 0:  # a sagittal slice has no right and left; either way round will do
        assert not any(step.any() for step in steps[0])
        return
    assert (steps[row][0] < 0).all()
    assert (steps[column][1] < 0).all()
    spacing = np.abs(axes).sum(axis=1)  # along R, A, S
    assert views[0].aspect == pytest.approx(spacing[row] / spacing[column])


def test_of_equally_coarse_axes_slices_run_along_k():
    geometry = Geometry((4, 5, 6), np.eye(4))
    truth = np.zeros(geometry.shape, np.uint8)
    truth[2, 1:4, 1:3] = 1
    truth[:, 2, 2] = 9  # not scored, not counted
    view = most_wrong_slice(
        Volume(truth.astype(np.float32), geometry), np.zeros_like(truth), truth, {"organ": 1}
    )
    assert (view.index, view.truth.shape, view.truth.sum()) == (2, (5, 4), 5)


def test_spacings_that_are_equal_but_for_rounding_count_as_equal():
    geometry = Geometry((4, 5, 6), np.diag([1.0000004, 1.0, 1.0, 1.0]))
    truth = np.zeros(geometry.shape, np.uint8)
    truth[2, 1:4, 1:3] = 1
    view = most_wrong_slice(
        Volume(truth.astype(np.float32), geometry), np.zeros_like(truth), truth, {"organ": 1}
    )
    assert (view.index, view.truth.shape) == (2, (5, 4))


def test_a_picture_is_drawn_where_a_label_is_nowhere_or_everywhere(tmp_path):
    geometry = Geometry((4, 5, 6), np.eye(4))
    everywhere, nowhere = np.ones(geometry.shape, np.uint8), np.zeros(geometry.shape, np.uint8)
    image = Volume(np.zeros(geometry.shape, np.float32), geometry)
    view = most_wrong_slice(image, everywhere, nowhere, LABELS)
    draw_view(view, "title", tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").stat().st_size > 1000
