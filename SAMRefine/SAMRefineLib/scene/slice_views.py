# SPDX-License-Identifier: Apache-2.0
"""Slice views of a volume: which slice they show, and navigation to another one."""

from collections.abc import Sequence

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib.geometry import Geometry

from ..boxes.boxes import Box3D, SliceGrid

PARALLEL = 0.9
"""Least cosine between a slice view's normal and the axis that is sliced."""


def between_nodes(
    points: np.ndarray,
    from_node: slicer.vtkMRMLTransformableNode | None,
    to_node: slicer.vtkMRMLTransformableNode | None,
) -> np.ndarray:
    """Transform points from the space of a node to that of another; None is the world.

    Args:
        points: (n, 3) mm.
        from_node: the node that they are relative to.
        to_node: the node that the result is relative to.

    Returns:
        Points (n, 3) in mm.
    """
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        from_node and from_node.GetParentTransformNode(),
        to_node and to_node.GetParentTransformNode(),
        transform,
    )
    return np.array([transform.TransformPoint(point) for point in points])


def world_to_ijk(
    points: np.ndarray, volume_node: slicer.vtkMRMLScalarVolumeNode, geometry: Geometry
) -> np.ndarray:
    """Convert points (n, 3) in the world in mm to voxel indices (i, j, k) of a volume, (n, 3)."""
    return geometry.to_ijk(between_nodes(np.asarray(points), None, volume_node))


def ijk_to_world(
    ijk: np.ndarray, volume_node: slicer.vtkMRMLScalarVolumeNode, geometry: Geometry
) -> np.ndarray:
    """Convert voxel indices (i, j, k) of a volume, (n, 3), to points (n, 3) in the world in mm."""
    return between_nodes(geometry.to_ras(ijk), volume_node, None)


def slice_views() -> Sequence[slicer.vtkMRMLSliceNode]:
    """List the slice views of the scene."""
    return slicer.util.getNodesByClass("vtkMRMLSliceNode")


def shows_slices(
    view: slicer.vtkMRMLSliceNode, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid
) -> bool:
    """Tell whether a view lies along the slices, or nearly so."""
    return _slice_and_cosine(view, volume_node, grid)[1] >= PARALLEL


def slice_in_view(
    view: slicer.vtkMRMLSliceNode, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid
) -> int | None:
    """Return the index of the slice that a view shows; None if it cuts across, or lies beyond."""
    slice_index, cosine = _slice_and_cosine(view, volume_node, grid)
    return slice_index if cosine >= PARALLEL and 0 <= slice_index < grid.count else None


def _slice_and_cosine(
    view: slicer.vtkMRMLSliceNode, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid
) -> tuple[int, float]:
    """Return the slice at a view's centre, and the cosine between the normals of both."""
    to_world = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
    at, right, up = world_to_ijk(
        to_world[:3, 3] + ((0, 0, 0), to_world[:3, 0], to_world[:3, 1]), volume_node, grid.geometry
    )
    # A transform may shear the volume: its planes stay planes, normals do not stay normals.
    normal = np.cross(*(np.array((right - at, up - at)) * grid.geometry.spacing))
    return round(at[grid.axis]), abs(normal[grid.axis]) / float(np.linalg.norm(normal))


def align_views(volume_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Turn all slice views into the planes of a volume, in which slice boxes are rectangles."""
    for view in slice_views():
        view.RotateToVolumePlane(volume_node)


def jump_to(
    slice_index: int,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    grid: SliceGrid,
    block: Box3D | None,
) -> None:
    """Show a slice in all views, centred on a block or on the volume."""
    ijk = (np.array(grid.geometry.size) - 1) / 2
    if block is not None:
        ijk = (np.array(block.lower) + block.upper) / 2 - 0.5
    ijk[grid.axis] = slice_index
    world = ijk_to_world(ijk[None], volume_node, grid.geometry)[0]
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        volume_node.GetScene(), *world, slicer.vtkMRMLSliceNode.CenteredJumpSlice
    )
