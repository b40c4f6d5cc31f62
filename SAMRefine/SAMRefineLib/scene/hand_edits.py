# SPDX-License-Identifier: Apache-2.0
"""Edits of segments by others than the session: by hand in the Segment Editor, or by a script."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import slicer

from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.aside import Aside

from ..boxes.patches import Patch, common, moved
from .changes import VoxelChange
from .masks import patches_in, read_layers
from .observers import Observers


class HandEdits:
    """Segments that are not as the session left them.

    Attributes:
        dice: Dice of the coarse mask and the segment now, by segment ID, of segments that were
            found edited.
        observers: what is observed.
    """

    def __init__(self, segmentation_node: slicer.vtkMRMLSegmentationNode) -> None:
        """Take segments as they are when they are read first."""
        self.dice: dict[str, float] = {}
        self._node = segmentation_node
        self._expected: dict[str, int] = {}  # checksums, by segment ID
        self._due, self._drawing, self.observers = True, False, Observers()
        segmentation = segmentation_node.GetSegmentation()
        self.observers.add(segmentation, segmentation.SourceRepresentationModified, self._modified)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Take changes of segments in the context for those of the session."""
        self._drawing = True
        try:
            yield
        finally:
            self._drawing = False

    def _modified(self, *_: object) -> None:
        self._due = self._due or not self._drawing

    def expect(self, changes: Iterable[VoxelChange], *, backwards: bool) -> None:
        """Follow changes that the session made, or undid."""
        for change in changes:
            if change.segment in self._expected:
                gained, lost = (
                    checksum(Patch(change.first, change.mask(bits)))
                    for bits in (change.gained, change.lost)
                )
                more = lost - gained if backwards else gained - lost
                self._expected[change.segment] = (self._expected[change.segment] + more) % 2**64
            if self.dice.pop(change.segment, None) is not None:
                self._due = True

    def read(
        self,
        ids: Iterable[str],
        geometry: Geometry,
        coarse: Callable[[str], Callable[[], Patch] | None],
        aside: Aside,
    ) -> set[str]:
        """Compare segments with their last reading, and return the IDs of those that changed.

        Args:
            ids: IDs of the segments.
            geometry: the grid.
            coarse: called with an ID, returns a function for any thread that reads its coarse mask.
            aside: runs what takes long.
        """
        if not self._due:
            return set()
        self._due = False
        layers = read_layers(self._node, list(ids), geometry)
        before = {id: coarse(id) for id in layers}
        edited, self.dice = aside(lambda: self._compared(patches_in(layers), before))
        return edited

    def _compared(
        self, patches: Mapping[str, Patch], coarse: Mapping[str, Callable[[], Patch] | None]
    ) -> tuple[set[str], dict[str, float]]:
        edited, dice = set(), {}
        for id, patch in patches.items():
            found = checksum(patch)
            if self._expected.get(id, found) != found:
                edited.add(id)
            self._expected[id] = found
            if (id in edited or id in self.dice) and coarse[id] is not None:
                dice[id] = patch_dice(coarse[id](), patch)
        return edited, dice


def checksum(patch: Patch) -> int:
    """Return a number for the set of voxels of a bool mask: the sum of a number for each voxel.

    So a change of voxels adds the checksum of those that are gained and takes away that of those
    that are lost, modulo 2**64.
    """
    total = 0
    for k, plane in enumerate(patch.mask, start=patch.first[0]):
        j, i = np.divmod(np.flatnonzero(plane).astype(np.uint64), np.uint64(plane.shape[1] or 1))
        code = (np.uint64(k) << 42) + ((j + np.uint64(patch.first[1])) << 21)
        code = (code + i + np.uint64(patch.first[2] + 1)) * np.uint64(0x9E3779B97F4A7C15)
        code = (code ^ (code >> 29)) * np.uint64(0xBF58476D1CE4E5B9)  # mixed as by SplitMix64
        total += int((code ^ (code >> 32)).sum(dtype=np.uint64))
    return total % 2**64


def patch_dice(one: Patch, other: Patch) -> float:
    """Return the Dice of two bool masks; 1 if both are empty."""
    both = common(one.block, other.block)
    parts = [each.mask[moved(both, [-n for n in each.first])] for each in (one, other)]
    total = int(one.mask.sum() + other.mask.sum())
    return 2 * int((parts[0] & parts[1]).sum()) / total if total else 1.0
