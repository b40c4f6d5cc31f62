# SPDX-License-Identifier: Apache-2.0
"""Volume nodes are read where they lie, frames of sequences too; views jump to a slice."""

import numpy as np
import pytest
import slicer
import vtk
from geometries import geometries
from hypothesis import given, settings
from scene_cases import GRID, a_sequence, add_transform, add_volume
from slicer_scene_fixture import empty_scene

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.scene.nodes import frame_count, read_volume

pytestmark = pytest.mark.needs_slicer


@given(geometry=geometries(max_size=5))
@settings(max_examples=40)
def test_a_volume_is_read_where_it_lies_whatever_transform_is_above_it(geometry):
    with empty_scene():
        node = add_volume(geometry)
        add_transform(node)
        volume = read_volume(node)
        assert volume.geometry.matches(geometry, 1e-9)
        np.testing.assert_array_equal(volume.array, slicer.util.arrayFromVolume(node))
        assert volume.array.shape == geometry.shape


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
)
def test_every_type_of_voxel_is_read_as_it_is(scene, dtype):
    array = np.arange(np.prod(GRID.size)).reshape(GRID.shape).astype(dtype)
    volume = read_volume(add_volume(array=array))
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, array)


def test_what_is_read_is_a_copy(scene):
    node = add_volume()
    volume = read_volume(node)
    slicer.util.arrayFromVolume(node)[:] = -5
    assert volume.array.max() == np.prod(GRID.size) - 1


def test_an_image_that_was_cut_out_lies_where_it_was(scene):
    node = add_volume()
    cut = vtk.vtkExtractVOI()
    cut.SetVOI(2, 6, 1, 3, 3, 4)
    cut.SetInputData(node.GetImageData())
    cut.Update()
    whole = slicer.util.arrayFromVolume(node).copy()
    node.SetAndObserveImageData(cut.GetOutput())
    volume = read_volume(node)
    np.testing.assert_array_equal(volume.array, whole[3:5, 1:4, 2:7])
    np.testing.assert_allclose(volume.geometry.to_ras((0, 0, 0)), GRID.to_ras((2, 1, 3)))


@pytest.mark.parametrize("kind", ["vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode"])
def test_only_scalar_volumes_are_segmented(scene, kind):
    node = slicer.mrmlScene.AddNewNodeByClass(kind, "odd one")
    with pytest.raises(VolumeError, match=r'scalar volumes.*"odd one"'):
        read_volume(node)
    with pytest.raises(VolumeError, match="nothing"):
        read_volume(None)


def test_a_volume_without_voxels_is_refused(scene):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow")
    with pytest.raises(VolumeError, match='"hollow" has no voxels'):
        read_volume(node)


def test_any_frame_of_a_sequence_is_read_while_another_is_shown(scene):
    node, browser = a_sequence()
    assert frame_count(node) == 3
    assert frame_count(add_volume()) == 0
    frame = read_volume(node, 2)
    assert np.unique(frame.array) == [12]
    assert frame.geometry.affine[2, 3] == GRID.affine[2, 3] + 2
    assert browser.GetSelectedItemNumber() == 0
    assert np.unique(read_volume(node).array) == [10]
    for number in (-1, 3):
        with pytest.raises(VolumeError, match=f"no frame {number} .* sequence of 3"):
            read_volume(node, number)
    with pytest.raises(VolumeError, match="no frame 0"):
        read_volume(add_volume(name="still"), 0)
