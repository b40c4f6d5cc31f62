# SPDX-License-Identifier: Apache-2.0
"""Conversion of segments to organs with boxes, and segments of organs."""

from collections.abc import Sequence

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.measures import measures
from SRCSMSegmenterLib.scene.nodes import ORGAN_TAG
from SRCSMSegmenterLib.scene.probabilities import probabilities
from SRCSMSegmenterLib.scene.sampling import any_mask
from SRCSMSegmenterLib.terminology import readable, segment_for, terminology_entry

from ..boxes.boxes import SliceGrid
from ..boxes.coarse import BOX_CONFIDENCE, is_uncertain
from ..boxes.key_frames import KeyFrames
from ..boxes.patches import Patch, packed_slices
from ..refine.acceptance import NO_BOX
from ..refine.organ_state import OrganState
from .masks import add_segment, lay_on, read_masks

DRAWN = "SRCSM.Drawn"
"""Segment tag: the segment was made for an organ without a coarse mask."""

DRAWN_PROBABILITY = 0.2
"""Voxels of a segment with a smaller probability were drawn by hand."""


def segment_ids(
    node: slicer.vtkMRMLSegmentationNode, organs: Sequence[str] | None = None
) -> list[str]:
    """Find segments and return their IDs.

    Args:
        node: the segmentation.
        organs: names or IDs of segments; None for all.

    Raises:
        PromptError: there is no such segment.
    """
    segmentation = node.GetSegmentation()
    ids = list(segmentation.GetSegmentIDs())
    if organs is None:
        return ids
    chosen = []
    for organ in organs:
        id = organ if organ in ids else segmentation.GetSegmentIdBySegmentName(organ)
        if not id:
            raise PromptError(f'The segmentation "{node.GetName()}" has no segment "{organ}".')
        chosen.append(id)
    return chosen


def organ_of(
    node: slicer.vtkMRMLSegmentationNode,
    id: str,
    mask: np.ndarray,
    label: int,
    grid: SliceGrid,
    box_confidence: float | None,
) -> OrganState:
    """Make an organ with automatic boxes of a segment.

    Args:
        node: the segmentation.
        id: the segment's ID.
        mask: its voxels, bool (K, J, I).
        label: the organ's label.
        grid: the slices.
        box_confidence: see `logic.boxes`.
    """
    segment = node.GetSegmentation().GetSegment(id)
    coarse = coarse_probabilities(node, id, mask, grid)
    given = box_confidence is not None
    frames = KeyFrames.from_coarse(
        segment.GetName(),
        label,
        coarse,
        grid,
        box_confidence=box_confidence if given else BOX_CONFIDENCE,
    )
    result = packed_slices(dict(enumerate(grid.stack(mask))))
    return OrganState(
        frames,
        id,
        tuple(segment.GetColor()),
        coarse=bool(result),
        keep_unboxed=given,
        undecided=not given and is_uncertain(coarse),
        result=result,
    )


def coarse_probabilities(
    node: slicer.vtkMRMLSegmentationNode, id: str, mask: np.ndarray, grid: SliceGrid
) -> np.ndarray:
    """Return the network's probabilities of a segment if they are known, or its mask.

    Args:
        node: the segmentation.
        id: the segment's ID.
        mask: its voxels, bool (K, J, I), which the user may have edited.
        grid: the slices.

    Returns:
        (K, J, I) probabilities that agree with the mask, at least a half inside and less outside;
        or `mask`.
    """
    known = probabilities(node).get(organ_tag(node, id))
    if known is None or known.shape != grid.geometry.shape:
        return mask
    drawn = known < DRAWN_PROBABILITY
    inside = np.where(drawn, np.float16(1), np.maximum(known, np.float16(0.5)))
    outside = np.where(known < 0.5, known, np.float16(0))
    return np.where(mask, inside, outside)


def organ_tag(node: slicer.vtkMRMLSegmentationNode, id: str) -> str:
    """Return SRCSMSegmenter's name of a segment's organ; "" if the segment is not its own."""
    segment = node.GetSegmentation().GetSegment(id)
    return _tag(segment, ORGAN_TAG) if segment else ""


def uncertain_slices(
    node: slicer.vtkMRMLSegmentationNode, organ: OrganState, grid: SliceGrid
) -> list[int]:
    """List slices in which SAM's mask was rejected, or the network was least certain."""
    kept = organ.report.kept if organ.report else {}
    slices = {k for k, reason in kept.items() if reason != NO_BOX}
    tag = organ_tag(node, organ.segment)
    if grid.axis == 2:
        for measure in measures(node):
            if measure.name == readable(tag or ""):
                slices |= {k for k, _ in measure.least_certain}
    return sorted(slices)


def new_segmentation(
    volume_node: slicer.vtkMRMLScalarVolumeNode, name: str
) -> slicer.vtkMRMLSegmentationNode:
    """Add an empty segmentation on a volume's grid, beside it in the subject hierarchy."""
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
    """Copy segments to a new segmentation on a volume's grid.

    Returns:
        The new segmentation, and the masks by segment ID, bool (K, J, I).
    """
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
    node: slicer.vtkMRMLSegmentationNode,
    organs: Sequence[OrganState],
    geometry: Geometry,
    owner: str,
) -> None:
    """Add missing segments of organs, and remove empty ones made for organs that are gone.

    Args:
        node: the segmentation.
        organs: the organs.
        geometry: the grid.
        owner: ID of the session's node; only segments that were made for it are removed.
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
            known = segment_for(organ.name, organ.label)
            entry = slicer.vtkSegment.GetTerminologyEntryTagName()
            tags = {entry: terminology_entry(known), DRAWN: owner}
            add_segment(node, geometry, empty, organ.segment, organ.name, organ.color, tags)


def _tag(segment: slicer.vtkSegment, name: str) -> str:
    text = vtk.reference("")
    return str(text) if segment.GetTag(name, text) else ""
