# SPDX-License-Identifier: Apache-2.0
"""Surfaces are those that Slicer makes, made one by one, and all of them or none."""

import numpy as np
import pytest
import vtk
from scene_cases import GRID, a_scan, draw, some_result
from vtk.util.numpy_support import vtk_to_numpy

from SRCSMSegmenterLib.errors import Cancelled
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.scene.nodes import SURFACE
from SRCSMSegmenterLib.scene.results import place
from SRCSMSegmenterLib.scene.surfaces import is_shown_3d, make_surfaces, show_3d, surfaces_of

pytestmark = pytest.mark.needs_slicer


@pytest.fixture
def drawn(scene):
    """A segmentation with an organ at the scan's border, an empty one, and one that overlaps."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:3, 1:5, 2:7] = 1
    node = a_scan()
    segmentation = place(some_result(labels=Volume(labels, GRID)), node).segmentation
    draw(segmentation, "lesion", labels[:, ::-1] == 1, node)
    return segmentation


def points(segmentation):
    return {
        id: surface.GetPoints() and vtk_to_numpy(surface.GetPoints().GetData())
        for id, surface in surfaces_of(segmentation.GetSegmentation()).items()
    }


def test_surfaces_are_slicers_own(drawn):
    drawn.CreateClosedSurfaceRepresentation()
    expected = points(drawn)
    drawn.GetSegmentation().RemoveRepresentation(SURFACE)
    told = []
    make_surfaces(drawn, lambda function, done=None: told.append(done) or function())
    found = points(drawn)
    assert list(found) == list(expected) == ["liver", "right_kidney", "lesion"]
    assert found["right_kidney"] is expected["right_kidney"] is None
    for id in ("liver", "lesion"):
        np.testing.assert_allclose(found[id], expected[id], atol=1e-4)
    assert [done for done in told if done is not None] == pytest.approx([0, 1 / 3])


def test_views_are_told_of_surfaces(drawn):
    heard = []
    drawn.GetSegmentation().AddObserver(
        drawn.GetSegmentation().ContainedRepresentationNamesModified, lambda *_: heard.append(1)
    )
    drawn.GetDisplayNode().AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: heard.append(2))
    make_surfaces(drawn)
    assert set(heard) == {1, 2}


def test_surfaces_are_shown_and_hidden_again(drawn):
    assert not is_shown_3d(drawn)
    show_3d(drawn, True)
    assert is_shown_3d(drawn)
    show_3d(drawn, False)
    assert not is_shown_3d(drawn)


def test_cancelling_leaves_no_surface(drawn):
    def stop(function, done=None):
        if done:
            raise Cancelled("Stopped.")
        return function()

    with pytest.raises(Cancelled):
        show_3d(drawn, True, stop)
    assert surfaces_of(drawn.GetSegmentation()) == {}
    assert not is_shown_3d(drawn)
