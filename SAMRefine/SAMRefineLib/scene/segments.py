# SPDX-License-Identifier: Apache-2.0
"""From segments to organs with boxes, and segments for organs."""

from collections.abc import Sequence

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.nodes import ORGAN_TAG
from SRCSMSegmenterLib.scene.probabilities import probabilities
from SRCSMSegmenterLib.terminology import segment_for, terminology_entry

from ..boxes.boxes import SliceGrid
from ..boxes.coarse import SURE, UNSURE, sureness
from ..boxes.key_frames import KeyFrames
from ..refine.organ_state import Organ, Patch, packed
from .masks import add_segment, any_mask, lay_on, read_masks

DRAWN = "SRCSM.Drawn"
"""Segment tag: made for a box that was drawn on nothing."""

SURELY_EDITED = 0.2
"""A voxel of a segment to which the network gave less than this was drawn by hand."""


def segment_ids(
    node: slicer.vtkMRMLSegmentationNode, organs: Sequence[str] | None = None
) -> list[str]:
    """IDs of segments.

    Args:
        organs: their names or IDs; None for all.

    Raises:
        PromptError: there is no such segment.
    """
    segmentation = node.GetSegmentation()
    ids = list(segmentation.GetSegmentIDs())
    if organs is None:
        return ids
    found = []
    for organ in organs:
        id = organ if organ in ids else segmentation.GetSegmentIdBySegmentName(organ)
        if not id:
            raise PromptError(f'The segmentation "{node.GetName()}" has no segment "{organ}".')
        found.append(id)
    return found


def organ_of(
    node: slicer.vtkMRMLSegmentationNode,
    id: str,
    mask: np.ndarray,
    value: int,
    grid: SliceGrid,
    box_confidence: float | None,
) -> Organ:
    """A segment with automatic boxes.

    Args:
        mask: its voxels, bool (K, J, I).
        box_confidence: see `logic.boxes`.
    """
    segment = node.GetSegmentation().GetSegment(id)
    coarse = coarse_chances(node, id, mask, grid)
    given = box_confidence is not None
    frames = KeyFrames.from_coarse(
        segment.GetName(),
        value,
        coarse,
        grid,
        box_confidence=box_confidence if given else SURE,
    )
    result = {n: packed(shown) for n, shown in enumerate(grid.stack(mask)) if shown.any()}
    return Organ(
        frames,
        id,
        tuple(segment.GetColor()),
        coarse=bool(result),
        keep_unboxed=given,
        undecided=not given and sureness(coarse) < UNSURE,
        result=result,
    )


def coarse_chances(
    node: slicer.vtkMRMLSegmentationNode, id: str, mask: np.ndarray, grid: SliceGrid
) -> np.ndarray:
    """The network's probabilities of a segment, (K, J, I), where they are still there, or `mask`.

    They agree with the mask, which may have been edited since they were found: at least a half in
    it, less outside.
    """
    chances = probabilities(node).get(organ_tag(node, id))
    if chances is None or chances.shape != grid.geometry.shape:
        return mask
    inside = np.where(chances < SURELY_EDITED, np.float16(1), np.maximum(chances, np.float16(0.5)))
    outside = np.where(chances < 0.5, chances, np.float16(0))
    return np.where(mask, inside, outside)


def organ_tag(node: slicer.vtkMRMLSegmentationNode, id: str) -> str:
    """What SRCSMSegmenter calls the organ of a segment; "" where it does not know it."""
    segment = node.GetSegmentation().GetSegment(id)
    return _tag(segment, ORGAN_TAG) if segment else ""


def new_segmentation(
    volume_node: slicer.vtkMRMLScalarVolumeNode, name: str
) -> slicer.vtkMRMLSegmentationNode:
    """An empty one on a volume's grid, beside it in the subject hierarchy."""
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    node.CreateDefaultDisplayNodes()
    lay_on(node, volume_node)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(volume_node)
    parent = hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID()
    own = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(parent, node)
    hierarchy.SetItemParent(own, parent)
    return node


def copied(
    node: slicer.vtkMRMLSegmentationNode,
    ids: Sequence[str],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> tuple[slicer.vtkMRMLSegmentationNode, dict[str, np.ndarray]]:
    """A segmentation on the volume's grid with segments of another, and their masks."""
    masks = {id: any_mask(node, id, volume_node) for id in ids}
    target = new_segmentation(volume_node, f"{node.GetName()} refined")
    entry = slicer.vtkSegment.GetTerminologyEntryTagName()
    for id, mask in masks.items():
        segment = node.GetSegmentation().GetSegment(id)
        tags = {entry: segment.GetTerminology() or ""}
        name, color = segment.GetName(), segment.GetColor()
        add_segment(target, geometry, Patch.of(mask), id, name, color, tags)
    return target, masks


def sync_segments(
    node: slicer.vtkMRMLSegmentationNode, organs: Sequence[Organ], geometry: Geometry, owner: str
) -> None:
    """Every organ has a segment; one made for a box that is gone is gone as well if empty.

    Args:
        owner: who makes segments for boxes, and removes no others.
    """
    segmentation = node.GetSegmentation()
    wanted = {organ.segment for organ in organs}
    for id in list(segmentation.GetSegmentIDs()):
        drawn = _tag(segmentation.GetSegment(id), DRAWN) == owner
        if drawn and id not in wanted and not read_masks(node, [id], geometry)[id].any():
            segmentation.RemoveSegment(id)
    empty = Patch.of(np.zeros((0, 0, 0), bool))
    for organ in organs:
        if segmentation.GetSegment(organ.segment) is None:
            label = segment_for(organ.name, organ.value)
            entry = slicer.vtkSegment.GetTerminologyEntryTagName()
            tags = {entry: terminology_entry(label), DRAWN: owner}
            add_segment(node, geometry, empty, organ.segment, organ.name, organ.color, tags)


def _tag(segment: slicer.vtkSegment, name: str) -> str:
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""
