# SPDX-License-Identifier: Apache-2.0
"""Nodes that keep boxes in the scene, and their removal. Main thread only, as all of MRML."""

import slicer

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.scene.nodes import node_geometry

from ..boxes.boxes import SliceGrid
from .observers import remove_node

BOXES = "SRCSM.Boxes"
"""Attribute of a node that keeps boxes in the scene, and the name of its parameter."""

VOLUME = "SRCSM.Volume"
"""Role of the node's reference to the scan."""

SEGMENTATION, BEFORE = "SRCSM.Segmentation", "SRCSM.Before"
"""Roles of its references to the refined segmentation, and to the coarse masks."""

BOUND = "SRCSM.Bound"
"""Role of its references to ROIs around organs, followed by "." and an organ's label."""

MADE = "SRCSM.Made"
"""Attribute: when the segmentation was made that the boxes are of, as it told then."""


def when_made(segmentation: slicer.vtkMRMLSegmentationNode) -> str:
    """Return when SRCSMSegmenter made a segmentation; "" if it did not."""
    return segmentation.GetAttribute("SRCSM.Date") or ""


def has_another_grid(volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid) -> bool:
    """Tell whether a volume has voxels on another grid than that of its boxes."""
    try:
        return not node_geometry(volume_node).matches(grid.geometry)
    except VolumeError:
        return False  # it has lost its voxels, and may get them again


def is_outdated(node: slicer.vtkMRMLScriptedModuleNode) -> bool:
    """Tell whether the segmentation of boxes was made anew since."""
    made, segmentation = node.GetAttribute(MADE), node.GetNodeReference(SEGMENTATION)
    return None not in (made, segmentation) and made != when_made(segmentation)


def saved_boxes() -> list[slicer.vtkMRMLScriptedModuleNode]:
    """List the nodes of the scene that keep boxes."""
    scripted = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
    return [node for node in scripted if node.GetAttribute(BOXES)]


def remove_boxes(node: slicer.vtkMRMLScriptedModuleNode) -> None:
    """Remove boxes that are closed, with their ROIs and coarse masks."""
    roles = [node.GetNthNodeReferenceRole(n) for n in range(node.GetNumberOfNodeReferenceRoles())]
    owned = [node.GetNodeReference(each) for each in roles if each.startswith((BOUND, BEFORE))]
    for each in (*owned, node):
        remove_node(each)


def remove_boxes_of(removed: slicer.vtkMRMLNode) -> None:
    """Remove the boxes of a volume or segmentation that was removed from the scene."""
    for node in saved_boxes():
        if removed.GetID() in [node.GetNodeReferenceID(role) for role in (VOLUME, SEGMENTATION)]:
            remove_boxes(node)
