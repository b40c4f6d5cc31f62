# SPDX-License-Identifier: Apache-2.0
"""State of an organ in a session: boxes, points, flags and the last result; settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from ..boxes.boxes import Box, Box3D, PointPrompt
from ..boxes.dragging import dragged
from ..boxes.key_frames import KeyFrames
from ..boxes.patches import packed_slices

NeighbourRule = Literal["keep", "overwrite", "overlap"]
"""Whether voxels that a refined organ shares with segments that are not being refined stay with the
segments ("keep"), become the organ's ("overwrite"), or belong to both ("overlap")."""


@dataclass(frozen=True)
class Settings:
    """Settings of a refinement.

    Attributes:
        sam: name of a shipped SAM, folder or file; "" takes the shipped one of the modality.
        sam_kind: kind of a file that is not recognised, such as "medsam".
        modality: "CT" or "MR"; None takes that of the DICOM header, else guesses.
        mosaic: what tiles show (`prediction.MosaicMode`).
        mask_threshold: threshold of SAM's probabilities (the paper's theta 2).
        mask_prompt: False gives SAM no coarse mask of any organ; see `OrganState.mask_prompt`.
        device: see `devices.resolve_device`.
        neighbours: see `NeighbourRule`.
    """

    sam: str = ""
    sam_kind: str | None = None
    modality: str | None = None
    mosaic: str = "crops"
    mask_threshold: float = 0.5
    mask_prompt: bool = True
    device: str = "auto"
    neighbours: NeighbourRule = "keep"


DEFAULT_SETTINGS = Settings()


@dataclass(frozen=True)
class Report:
    """Summary of an organ's last refinement; for the attributes see `results.OrganReport`."""

    boxes: int
    kept: Mapping[int, str]
    dice: float | None
    voxels_before: int
    voxels_after: int
    predicted_iou: float | None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Report":
        """Read a report; other keys of `row` are ignored."""
        known = {each.name: row[each.name] for each in fields(cls)}
        return cls(**{**known, "kept": {int(k): str(why) for k, why in row["kept"].items()}})


@dataclass(frozen=True)
class OrganState:
    """An organ of a session. Every edit gives a new object.

    Attributes:
        frames: its boxes.
        segment: ID of the segment that it is drawn into.
        color: RGB, 0-1.
        coarse: True if there is a coarse mask.
        points: points in the organ or outside, by slice index.
        shown: True if its boxes are visible.
        enabled: True if it takes part in the refinement of all organs.
        kept: True if the user decided to keep the coarse mask.
        changed: True if its boxes or points changed since its last refinement.
        report: summary of that refinement.
        mask_prompt, keep_unboxed: see `refiner.OrganPrompt`.
        undecided: True if the network is so uncertain of the organ that SAM has to choose its
            automatic boxes (`box_selection`), and has not done so yet.
        doubtful: indices of the slices of which the network was least certain, these first.
        by_hand: True if its segment was edited by others than this session since it was drawn.
        result: the last result by slice index, `patches.packed`; slices without the organ are left
            out. None if it is unknown, as it is not saved.
    """

    frames: KeyFrames
    segment: str
    color: tuple[float, float, float] = (1.0, 1.0, 0.0)
    coarse: bool = False
    points: Mapping[int, tuple[PointPrompt, ...]] = field(default_factory=dict)
    shown: bool = True
    enabled: bool = True
    kept: bool = False
    changed: bool = True
    report: Report | None = None
    mask_prompt: bool = True
    keep_unboxed: bool = True
    undecided: bool = False
    doubtful: tuple[int, ...] = ()
    by_hand: bool = False
    result: Mapping[int, bytes] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The organ's name."""
        return self.frames.name

    @property
    def label(self) -> int:
        """The organ's label."""
        return self.frames.label

    @property
    def awaits_choice(self) -> bool:
        """True if SAM has to choose its boxes, unless the user edited boxes or points."""
        return self.undecided and not self.points and self.frames == self.frames.reset()

    @property
    def edited(self) -> int:
        """Number of slices with another box than the automatic one."""
        automatic, boxes = self.frames.automatic, self.frames.effective()
        return sum(automatic.get(k) != boxes.get(k) for k in automatic.keys() | boxes.keys())

    def with_frames(self, frames: KeyFrames) -> "OrganState":
        """Replace the boxes."""
        return self if frames == self.frames else replace(self, frames=frames, changed=True)

    def with_points(self, points: Mapping[int, tuple[PointPrompt, ...]]) -> "OrganState":
        """Replace the points, by slice index."""
        points = {
            slice_index: tuple(PointPrompt(*point) for point in some)
            for slice_index, some in sorted(points.items())
            if some
        }
        return self if points == self.points else replace(self, points=points, changed=True)

    def with_bound(self, bound: Box3D) -> "OrganState":
        """Drag the 3-D box; see `dragging.dragged`."""
        return self.with_frames(dragged(self.frames, bound))

    def with_box(self, slice_index: int, box: Box) -> "OrganState":
        """Make a box a key frame."""
        return self.with_frames(self.frames.edit(slice_index, box))

    def with_choice(self, frames: KeyFrames, chosen: Mapping[str, Any]) -> "OrganState":
        """Take over boxes that SAM chose; for `chosen` see `tasks.refine`."""
        return replace(
            self,
            frames=frames,
            mask_prompt=self.label in chosen["mask_prompt"],
            keep_unboxed=self.label in chosen["keep_unboxed"],
            undecided=False,
        )

    def with_slice(self, slice_index: int, mask: np.ndarray) -> "OrganState":
        """Replace one slice of the result by a mask, bool (rows, columns)."""
        if self.kept or self.result is None:
            return self
        rest = {k: content for k, content in self.result.items() if k != slice_index}
        return replace(self, result=rest | packed_slices([(slice_index, mask)]))

    def with_result(
        self, asked: "OrganState", report: Report, masks: Mapping[int, np.ndarray]
    ) -> "OrganState":
        """Take over the result of a refinement.

        Args:
            asked: the organ when SAM was asked; if it was edited since, it counts as changed.
            report: summary of the refinement.
            masks: bool (rows, columns) of every slice, by slice index.
        """
        result, last = packed_slices(masks.items()), {} if self.kept else self.result or {}
        # The same objects again for equal slices: undo histories share them.
        result |= {k: last[k] for k in result if last.get(k) == result[k]}
        same = (self.frames, self.points) == (asked.frames, asked.points)
        return replace(self, report=report, changed=not same, kept=False, result=result)

    def near_box(self, slice_index: int) -> Box | None:
        """Return the box of the nearest slice with one, to start from; None if there is none."""
        boxes = self.frames.effective()
        return boxes[min(boxes, key=lambda other: abs(other - slice_index))] if boxes else None

    def usable_points(self) -> dict[int, tuple[PointPrompt, ...]]:
        """Return the points in slices with a box, by slice index; SAM takes no others."""
        boxes = self.frames.effective()
        return {k: points for k, points in self.points.items() if k in boxes}
