# SPDX-License-Identifier: Apache-2.0
"""Slicer's views of the scene: which volume they show, and where they look."""

import numpy as np
import slicer

from .nodes import node_geometry


def shown_volume() -> slicer.vtkMRMLScalarVolumeNode | None:
    """Return the scalar volume in the background of the slice views; if there is none, the first.

    None if the scene has no scalar volume.
    """
    scene = slicer.mrmlScene
    shown = (
        scene.GetNodeByID(view.GetBackgroundVolumeID() or "")
        for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    )
    volumes = [*shown, *slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    # Label maps and vector volumes are derived from scalar volumes.
    scalar = (node for node in volumes if node and node.GetClassName() == "vtkMRMLScalarVolumeNode")
    return next(scalar, None)


def segmented_volume(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
) -> slicer.vtkMRMLScalarVolumeNode | None:
    """Return the volume that a segmentation is of; None if it is gone."""
    role = segmentation_node.GetReferenceImageGeometryReferenceRole()
    return segmentation_node.GetNodeReference(role)


def show_volume(volume_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Show a volume in the slice views, if one of them shows another or none."""
    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    if any(view.GetBackgroundVolumeID() != volume_node.GetID() for view in views):
        slicer.util.setSliceViewerLayers(background=volume_node, fit=hasattr(slicer, "app"))


def jump_to_slice(volume_node: slicer.vtkMRMLScalarVolumeNode, number: int, axis: int = 2) -> None:
    """Centre the slice views on the middle of a slice of a volume, transforms included.

    Args:
        number: of the slice, from 0.
        axis: the voxel axis along which slices count: 0, 1 or 2 for I, J or K.
    """
    geometry = node_geometry(volume_node)
    middle = (np.array(geometry.size) - 1) / 2
    middle[axis] = number
    world = [0.0, 0.0, 0.0]
    volume_node.TransformPointToWorld(geometry.to_ras(middle), world)
    _jump(world)


def jump_to_segment(segmentation_node: slicer.vtkMRMLSegmentationNode, id: str) -> None:
    """Centre the slice views on the middle of a segment that has voxels, transforms included."""
    _jump(segmentation_node.GetSegmentCenterRAS(id))


def _jump(world: list[float]) -> None:
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        slicer.mrmlScene, *world, slicer.vtkMRMLSliceNode.CenteredJumpSlice
    )
