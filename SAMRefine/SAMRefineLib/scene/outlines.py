# SPDX-License-Identifier: Apache-2.0
"""Outlines of a session's organs: the segments that are redrawn, and the coarse masks from before.

Main thread only, as all of MRML.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeVar

import numpy as np
import slicer

from SRCSMSegmenterLib.scene.aside import Aside, directly

from ..boxes.boxes import SliceGrid
from ..boxes.patches import Patch
from ..refine.answers import Masks, result_masks
from ..refine.organ_state import NeighbourRule, OrganState
from .box_nodes import BEFORE, SEGMENTATION
from .changes import VoxelChange, apply, changes_to, renew_surfaces
from .hand_edits import HandEdits
from .masks import patches_in, read_layers
from .segments import CoarseSegment, all_slices, sync_segments

T = TypeVar("T")


class Outlines:
    """The segments of a session's organs, and their coarse masks.

    Attributes:
        waiting: makes a context that gives a way to run what takes long.
        edits: edits of the segments by others.
    """

    def __init__(self, node: slicer.vtkMRMLScriptedModuleNode, grid: SliceGrid) -> None:
        """Take the segmentations that a session's node references."""
        self.waiting: Callable[[], AbstractContextManager[Aside]] = lambda: nullcontext(directly)
        self._node, self._grid = node, grid
        self._segmentation = node.GetNodeReference(SEGMENTATION)
        self._coarse = node.GetNodeReference(BEFORE)
        self.edits = HandEdits(self._segmentation)
        self._outdated: set[str] = set()  # IDs of segments with outdated surfaces

    def aside(self, function: Callable[[], T], done: float | None = None) -> T:
        """Run a function that takes long; see `Aside`."""
        with self.waiting() as aside:
            return aside(function, done)

    # drawing

    def sync(self, organs: Sequence[OrganState]) -> None:
        """Add missing segments of organs, and remove empty ones of organs that are gone."""
        with self.edits.drawing():
            sync_segments(self._segmentation, organs, self._grid.geometry, owner=self._node.GetID())

    def changes_to(
        self, masks: Mapping[str, Mapping[int, np.ndarray]], neighbours: NeighbourRule
    ) -> list[VoxelChange]:
        """Return the changes that draw masks, bool (rows, columns) by segment ID and slice."""
        ids = self._segmentation.GetSegmentation().GetSegmentIDs()
        layers = read_layers(self._segmentation, ids, self._grid.geometry)
        return self.aside(lambda: changes_to(layers, self._grid, masks, neighbours))

    def draw(self, changes: Iterable[VoxelChange], *, backwards: bool = False) -> None:
        """Make changes of segments, or undo them.

        Raises:
            Cancelled: `waiting` raised it; nothing is changed.
        """
        changes = list(changes)
        grid = self._grid.geometry
        with self.edits.drawing(), self.waiting() as aside:
            self._outdated |= apply(
                changes, self._segmentation, grid, backwards=backwards, aside=aside
            )
        self.edits.expect(changes, backwards=backwards)

    def edited_by_hand(self, organs: Iterable[OrganState]) -> set[str]:
        """Return the IDs of organs' segments that others changed since they were read last."""
        by_id = {organ.segment: organ for organ in organs}
        coarse = lambda id: self.coarse_mask(by_id[id])  # noqa: E731
        return self.edits.read(by_id, self._grid.geometry, coarse, self.aside)

    def renew_surfaces(self) -> None:
        """Compute the surfaces of segments that were redrawn."""
        if self._outdated:
            ids, self._outdated = self._outdated, set()
            renew_surfaces(self._segmentation, ids)

    # coarse masks

    @property
    def before(self) -> slicer.vtkMRMLSegmentationNode | None:
        """The coarse masks; None if they were removed."""
        node = self._coarse
        return None if node is None or node.GetScene() is None else node

    def coarse_mask(self, organ: OrganState) -> Callable[[], Patch] | None:
        """Return a function, for any thread, that reads an organ's coarse mask; None without one.

        The mask is bool.
        """
        before = self.before
        if not organ.coarse or before is None:
            return None
        layers = read_layers(before, [organ.segment], self._grid.geometry)
        return (lambda: patches_in(layers)[organ.segment]) if layers else None

    def coarse_probabilities(self, organ: OrganState) -> Callable[[], Patch] | None:
        """Return a function, for any thread, that reads probabilities, or else the coarse mask."""
        mask = self.coarse_mask(organ)
        if mask is None or self._segmentation.GetSegmentation().GetSegment(organ.segment) is None:
            return mask
        segment = CoarseSegment.of(self._segmentation, organ.segment, self._grid)
        return lambda: segment.probabilities(mask())

    def kept(self, organ: OrganState, keep: bool) -> tuple[OrganState, Masks]:
        """Return an organ that keeps its coarse mask, or not, and all its slices.

        The last result is unknown in a scene that was loaded: then the coarse mask stays, and the
        organ counts as never refined.
        """
        organ = replace(organ, kept=keep, by_hand=False)
        if keep or organ.result is None:
            organ = organ if keep else replace(organ, report=None, changed=True)
            return organ, all_slices(self.coarse_mask(organ)(), self._grid)
        return organ, result_masks(organ.result, self._grid)

    @property
    def before_shown(self) -> bool:
        """True if the coarse masks are shown in place of the segments."""
        before = self.before
        return before is not None and bool(before.GetDisplayVisibility())

    def show_before(self, show: bool, organs: Iterable[OrganState]) -> bool:
        """Show the coarse masks in place of the segments, or the segments again.

        No voxel changes.

        Returns:
            True if the views changed.
        """
        before = self.before
        if before is None or show == self.before_shown:
            return False
        before.SetAndObserveTransformNodeID(self._segmentation.GetTransformNodeID())
        old, new = before.GetDisplayNode(), self._segmentation.GetDisplayNode()
        source, target = (new, old) if show else (old, new)
        segmentations = [node.GetSegmentation() for node in (before, self._segmentation)]
        for organ in organs:
            if all(segmentation.GetSegment(organ.segment) for segmentation in segmentations):
                visible = source.GetSegmentVisibility(organ.segment)
                target.SetSegmentVisibility(organ.segment, visible)
                if show:
                    new.SetSegmentVisibility(organ.segment, False)
        before.SetDisplayVisibility(show)
        return True
