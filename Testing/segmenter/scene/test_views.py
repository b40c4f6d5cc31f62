# SPDX-License-Identifier: Apache-2.0
"""The views show the volume that is worked on, and go where they are sent."""

import numpy as np
import pytest
import slicer
from scene_cases import GRID, TURN, a_scan, add_transform, add_volume, some_result

from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.scene.results import place
from SRCSMSegmenterLib.scene.views import (
    jump_to_segment,
    jump_to_slice,
    show_volume,
    shown_volume,
)

pytestmark = pytest.mark.needs_slicer


def test_the_volume_that_is_shown_comes_before_the_first(scene):
    assert shown_volume() is None
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    assert shown_volume() is None
    first, second = add_volume(name="first"), add_volume(name="second")
    assert shown_volume() is first
    view = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    assert shown_volume() is first
    view.SetBackgroundVolumeID(second.GetID())
    assert shown_volume() is second


def test_a_volume_is_shown_in_all_slice_views(scene):
    first, second = add_volume(name="first"), add_volume(name="second")
    views = [scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode") for _ in range(2)]
    views[0].SetBackgroundVolumeID(first.GetID())
    show_volume(second)
    assert [view.GetBackgroundVolumeID() for view in views] == [second.GetID()] * 2


def test_views_jump_to_a_slice_where_its_transform_puts_it(scene):
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    node = add_volume()
    add_transform(node)
    jump_to_slice(node, 3)
    world = TURN @ (*GRID.to_ras((4, 3, 3)), 1)
    centre = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())[:3, 3]
    np.testing.assert_allclose(centre, world[:3], atol=1e-6)


def test_slices_along_another_axis_are_found(scene):
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    jump_to_slice(add_volume(), 6, axis=0)
    centre = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())[:3, 3]
    np.testing.assert_allclose(GRID.to_ijk(centre), (6, 3, 2), atol=1e-6)


def test_views_jump_to_the_middle_of_a_segment(scene):
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:4, 2:5, 3:6] = 1
    result = some_result(labels=Volume(labels, GRID), probabilities={})
    jump_to_segment(place(result, a_scan()).segmentation, "liver")
    centre = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())[:3, 3]
    np.testing.assert_allclose(GRID.to_ijk(centre), (4, 3, 2), atol=1e-6)
