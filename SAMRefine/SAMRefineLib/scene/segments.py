# SPDX-License-Identifier: Apache-2.0
"""Conversion of segments to organs with boxes, and segments of organs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.aside import Aside, directly
from SRCSMSegmenterLib.scene.measures import measures, slice_axis
from SRCSMSegmenterLib.scene.nodes import ORGAN_TAG
from SRCSMSegmenterLib.scene.probabilities import Drawn, known_of
from SRCSMSegmenterLib.slices_to_check import slices_to_check
from SRCSMSegmenterLib.terminology import readable, segment_for, terminology_entry

from ..boxes.boxes import SliceGrid
from ..boxes.coarse import BOX_CONFIDENCE, is_uncertain, least_certain_slices
from ..boxes.key_frames import KeyFrames
from ..boxes.patches import NOTHING, Block, Patch, around, moved, packed_slices, shown_block
from ..refine.acceptance import NO_BOX
from ..refine.organ_state import OrganState
from .masks import add_segment, any_patch, lay_on, patches_in, read_layers

DRAWN = "SRCSM.Drawn"
"""Segment tag: the segment was made for an organ without a coarse mask."""

DRAWN_PROBABILITY = 0.2
"""Voxels of a segment with a smaller probability were drawn by hand."""


def segmentation_on(
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> slicer.vtkMRMLSegmentationNode | None:
    """Return the first segmentation that was drawn on a volume; None if there is none."""
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume_node:
            return node
    return None


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
        named = [id for id in ids if segmentation.GetSegment(id).GetName() == organ]
        found = [organ] if organ in ids else named  # two segments may have one name
        if not found:
            raise PromptError(f'The segmentation "{node.GetName()}" has no segment "{organ}".')
        chosen += [id for id in found if id not in chosen]
    return chosen


@dataclass(frozen=True, eq=False)
class CoarseSegment:
    """A segment before it is refined, to be read in any thread.

    Attributes:
        id: the segment's ID.
        name: its name.
        color: RGB, 0-1.
        known: the network's probabilities of it, (K, J, I); None if they are unknown.
        drawn: as the network's result drew it; None if that is unknown.
    """

    id: str
    name: str
    color: tuple[float, float, float]
    known: np.ndarray | None
    drawn: Drawn | None = None

    @classmethod
    def of(cls, node: slicer.vtkMRMLSegmentationNode, id: str, grid: SliceGrid) -> "CoarseSegment":
        """Look a segment up."""
        segment = node.GetSegmentation().GetSegment(id)
        result, tag = known_of(node), organ_tag(node, id)
        known, drawn = result.probabilities.get(tag), result.drawn.get(tag)
        if known is not None and known.shape != grid.geometry.shape:
            known = None
        return cls(id, segment.GetName(), tuple(segment.GetColor()), known, drawn)

    def organ(
        self, mask: Patch, label: int, grid: SliceGrid, box_confidence: float | None
    ) -> OrganState:
        """Make an organ with automatic boxes.

        Args:
            mask: the segment's voxels, bool.
            label: the organ's label.
            grid: the slices.
            box_confidence: see `logic.boxes`.
        """
        coarse, given = self.coarse(mask, mask.block), box_confidence is not None
        confidence = box_confidence if given else BOX_CONFIDENCE
        result = packed_slices(patch_slices(mask, grid))
        return OrganState(
            KeyFrames.from_patch(self.name, label, coarse, grid, box_confidence=confidence),
            self.id,
            self.color,
            coarse=bool(result),
            keep_unboxed=given,
            undecided=not given and is_uncertain(coarse.mask),
            doubtful=tuple(slices_to_check(least_certain_slices(coarse, grid), grid.thickness)),
            result=result,
        )

    def probabilities(self, mask: Patch) -> Patch:
        """Return the probabilities if they are known, else the mask; see `coarse`."""
        if self.known is None or (possible := shown_block(self.known)) == NOTHING:
            return mask
        return self.coarse(mask, around(mask.block, possible) if mask.mask.size else possible)

    def coarse(self, mask: Patch, block: Block) -> Patch:
        """Return the probabilities of a block if they are known, else the mask.

        Args:
            mask: the segment's voxels, bool, which the user may have edited.
            block: a block around them.

        Returns:
            Probabilities that agree with the mask, at least a half inside and less outside. They
            are 0 there if the mask was corrected: then the network does not know where it ends.
        """
        if self.known is None:
            return mask
        coarse, first = self.known[block].copy(), tuple(part.start for part in block)
        coarse[coarse >= (0 if self._corrected(mask) else 0.5)] = 0
        place = moved(mask.block, [-n for n in first])
        known = self.known[mask.block][mask.mask]
        added = known < DRAWN_PROBABILITY
        coarse[place][mask.mask] = np.where(added, 1, np.maximum(known, np.float16(0.5)))
        return Patch(first, coarse)

    def _corrected(self, mask: Patch) -> bool:
        """Tell whether the segment is another than the network's result drew."""
        if self.drawn is None:
            return False
        labels, label = self.drawn.labels, self.drawn.label
        if not np.array_equal(labels[mask.block] == label, mask.mask):
            return True  # the whole label map need not be counted
        return np.count_nonzero(labels == label) != np.count_nonzero(mask.mask)


def patch_slices(mask: Patch, grid: SliceGrid) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over the slices of a patch: slice index and bool (rows, columns)."""
    if not mask.mask.size:
        return
    axis, block = 2 - grid.axis, mask.block
    rest = block[:axis] + block[axis + 1 :]
    for k, shown in enumerate(np.moveaxis(mask.mask, axis, 0), start=block[axis].start):
        whole = np.zeros(grid.shape, bool)
        whole[rest] = shown
        yield k, whole


def all_slices(mask: Patch, grid: SliceGrid) -> dict[int, np.ndarray]:
    """Return all slices of a patch, bool (rows, columns) by slice index."""
    empty = np.zeros(grid.shape, bool)
    return dict.fromkeys(range(grid.count), empty) | dict(patch_slices(mask, grid))


def organ_tag(node: slicer.vtkMRMLSegmentationNode, id: str) -> str:
    """Return SRCSMSegmenter's name of a segment's organ; "" if the segment is not its own."""
    segment = node.GetSegmentation().GetSegment(id)
    return _tag(segment, ORGAN_TAG) if segment else ""


def uncertain_slices(
    node: slicer.vtkMRMLSegmentationNode, organ: OrganState, grid: SliceGrid
) -> list[int]:
    """List slices in which SAM's mask was rejected, or the network was least certain.

    They lie apart (`slices_to_check`). Along the axis of the table of measures they are its own.
    """
    kept = organ.report.kept if organ.report else {}
    rejected = sorted(k for k, reason in kept.items() if reason != NO_BOX)
    doubtful = slices_to_check(organ.doubtful, grid.thickness)
    tag = organ_tag(node, organ.segment)
    for measure in measures(node) if grid.axis == slice_axis(node) else ():
        if measure.name == readable(tag or ""):
            doubtful = slices_to_check([k for k, _ in measure.least_certain], grid.thickness)
    return sorted(slices_to_check([*rejected, *doubtful], grid.thickness, None))


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
    aside: Aside = directly,
) -> tuple[slicer.vtkMRMLSegmentationNode, dict[str, Patch]]:
    """Copy segments to a new segmentation on a volume's grid.

    Args:
        node: the segmentation.
        ids: IDs of the segments.
        volume_node: the volume.
        geometry: its grid.
        aside: called every few milliseconds.

    Returns:
        The new segmentation, and the masks by segment ID, bool.
    """
    masks = {id: any_patch(node, id, volume_node, aside) for id in ids}
    target = new_segmentation(volume_node, f"{node.GetName()} refined")
    entry = slicer.vtkSegment.GetTerminologyEntryTagName()
    for id, mask in masks.items():
        segment = node.GetSegmentation().GetSegment(id)
        tags = {entry: segment.GetTerminology() or ""}
        name, color = segment.GetName(), segment.GetColor()
        add_segment(target, geometry, mask, id, name, color, tags)
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
        if drawn and id not in wanted and not _shows_anything(node, id, geometry):
            segmentation.RemoveSegment(id)
    empty = Patch((0, 0, 0), np.zeros((0, 0, 0), bool))
    for organ in organs:
        if segmentation.GetSegment(organ.segment) is None:
            known = segment_for(organ.name, organ.label)
            entry = slicer.vtkSegment.GetTerminologyEntryTagName()
            tags = {entry: terminology_entry(known), DRAWN: owner}
            add_segment(node, geometry, empty, organ.segment, organ.name, organ.color, tags)


def _shows_anything(node: slicer.vtkMRMLSegmentationNode, id: str, geometry: Geometry) -> bool:
    return bool(patches_in(read_layers(node, [id], geometry))[id].mask.size)


def _tag(segment: slicer.vtkSegment, name: str) -> str:
    text = vtk.reference("")
    return str(text) if segment.GetTag(name, text) else ""
