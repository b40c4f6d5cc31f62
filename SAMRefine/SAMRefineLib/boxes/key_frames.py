# SPDX-License-Identifier: Apache-2.0
"""Key frames: the slice boxes of an organ, automatic and edited, and the file of boxes."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from SRCSMSegmenterLib.atomic import atomic_write, read_regular
from SRCSMSegmenterLib.errors import PromptError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.schema import parse_json
from SRCSMSegmenterLib.texts import UNSHOWN

from .boxes import AXES, Box, Box3D, SliceGrid
from .coarse import boxes_from_coarse, boxes_from_patch
from .patches import Patch

FADE_MM = 15.0
"""Distance in mm beyond the last edited slice over which its box influences automatic ones. Organs
and a network's errors change over a centimetre or two, whatever the slices' thickness."""

FORMAT = "srcsm-boxes"
VERSION = 1


@dataclass(frozen=True)
class KeyFrames:
    """The boxes of one organ on one grid. Every edit gives a new object.

    The box of a slice is, in this order:

    1. none if the slice is disabled; disabled slices are also ignored when interpolating;
    2. the edited one;
    3. between two edited slices, their boxes interpolated;
    4. beyond the last edited slice, the automatic box, mixed with that edited one up to `FADE_MM`
       away from it. Slices without an automatic box between the two are interpolated;
    5. the automatic one.

    After a drag of the 3-D box, `moved` replaces the automatic boxes in all of these rules. Finally
    `limit` cuts all boxes.

    Attributes:
        name: the organ's name.
        label: its label, 1 or more.
        grid: the slices.
        automatic: boxes by slice index that the organ started from, mostly those of a coarse mask.
        edited: boxes by slice index, made by hand.
        off: indices of the disabled slices, which have no box.
        limit: a block that no box may leave, or None.
        moved: boxes by slice index that replace the automatic ones after `dragging.dragged` moved
            or stretched them; None before.

    Raises:
        PromptError: a slice, a box or the limit lies outside the volume; a label less than 1.
    """

    name: str
    label: int
    grid: SliceGrid
    automatic: Mapping[int, Box] = field(default_factory=dict)
    edited: Mapping[int, Box] = field(default_factory=dict)
    off: frozenset[int] = frozenset()
    limit: Box3D | None = None
    moved: Mapping[int, Box] | None = None

    def __post_init__(self) -> None:
        if self.label < 1:
            raise PromptError(f'Organ "{self.name}" has the label {self.label}; use 1 or more.')
        # Copies, so that nobody changes what the undo history refers to.
        for name in ("automatic", "edited", "moved"):
            if getattr(self, name) is None:
                continue
            boxes = {int(k): box for k, box in sorted(getattr(self, name).items())}
            object.__setattr__(self, name, boxes)
            for k, box in boxes.items():
                self._check(k, box)
        object.__setattr__(self, "off", frozenset(int(k) for k in self.off))
        for k in self.off:
            self._check(k)
        if self.limit is not None:
            _rectangles(self.limit, self.grid, self.name)

    @classmethod
    def from_coarse(
        cls, name: str, label: int, coarse: np.ndarray, grid: SliceGrid, **options: float
    ) -> Self:
        """Draw automatic boxes around a coarse mask, (K, J, I) probabilities or bool.

        Args:
            options: see `coarse.boxes_from_coarse`.
        """
        return cls(name, label, grid, boxes_from_coarse(coarse, grid, **options))

    @classmethod
    def from_patch(
        cls, name: str, label: int, coarse: Patch, grid: SliceGrid, **options: float
    ) -> Self:
        """Draw automatic boxes around a coarse mask that is 0 outside a block.

        Args:
            coarse: probabilities or bool.
            options: see `coarse.boxes_from_coarse`.
        """
        return cls(name, label, grid, boxes_from_patch(coarse, grid, **options))

    @classmethod
    def drawn(cls, name: str, label: int, block: Box3D, grid: SliceGrid) -> Self:
        """Give an organ without a coarse mask the rectangle of a block in each of its slices.

        Raises:
            PromptError: the block lies outside the volume.
        """
        return cls(name, label, grid, _rectangles(block, grid, name))

    def edit(self, slice_index: int, box: Box) -> Self:
        """Make `box`, cut to the slice, a key frame, and enable the slice.

        The limit is widened to contain the box.

        Raises:
            PromptError: no such slice, or the box lies outside it.
        """
        box = box.clipped(self.grid.shape)
        limit = self.limit
        if limit is not None:
            block = self.grid.block(box, slice_index)
            limit = Box3D(
                np.minimum(limit.lower, block.lower), np.maximum(limit.upper, block.upper)
            )
        return dataclasses.replace(
            self,
            edited={**self.edited, slice_index: box},
            off=self.off - {slice_index},
            limit=limit,
        )

    def switch_off(self, slice_index: int) -> Self:
        """Disable a slice; an edited box comes back when the slice is enabled again."""
        return dataclasses.replace(self, off=self.off | {slice_index})

    def switch_on(self, slice_index: int) -> Self:
        """Enable a slice again, with the box it had before."""
        return dataclasses.replace(self, off=self.off - {slice_index})

    def limited(self, limit: Box3D | None) -> Self:
        """Cut all boxes to a block; None removes the limit.

        Raises:
            PromptError: the block lies outside the volume.
        """
        return dataclasses.replace(self, limit=limit)

    def reset(self, slice_index: int | None = None) -> Self:
        """Remove the edits of a slice, or all edits.

        Args:
            slice_index: None leaves the automatic boxes alone, as before any drag of the 3-D box.
        """
        if slice_index is None:
            return dataclasses.replace(self, edited={}, off=frozenset(), limit=None, moved=None)
        edited = {other: box for other, box in self.edited.items() if other != slice_index}
        return dataclasses.replace(self, edited=edited, off=self.off - {slice_index})

    @property
    def unedited(self) -> Mapping[int, Box]:
        """The boxes by slice index that edits start from."""
        return self.automatic if self.moved is None else self.moved

    def effective(self) -> dict[int, Box]:
        """Return the boxes in use by slice index, ascending; slices without one are left out."""
        boxes = {k: box for k, box in self.unedited.items() if k not in self.off}
        edited = {k: box for k, box in self.edited.items() if k not in self.off}
        if edited:
            _fade(boxes, min(edited), edited[min(edited)], -1, self.grid.thickness)
            _fade(boxes, max(edited), edited[max(edited)], 1, self.grid.thickness)
        for first, last in pairwise(edited):
            for k in range(first + 1, last):
                boxes[k] = edited[first].towards(edited[last], (k - first) / (last - first))
        boxes |= edited
        if self.limit is not None:
            cuts = _rectangles(self.limit, self.grid, self.name)
            cut = {k: boxes[k].overlap(cuts[k]) for k in boxes.keys() & cuts.keys()}
            boxes = {k: box for k, box in cut.items() if box is not None}
        return {k: boxes[k] for k in sorted(boxes) if k not in self.off}

    def bounds3d(self) -> Box3D | None:
        """Return the smallest block around all boxes in use; None if there are none."""
        boxes = self.effective()
        if not boxes:
            return None
        return self.grid.block(Box.around(boxes.values()), min(boxes), max(boxes))

    def require(self, grid: SliceGrid) -> None:
        """Raise PromptError unless the boxes were made on this grid."""
        if self.grid.matches(grid):
            return
        raise PromptError(
            f'The boxes of "{self.name}" belong to another grid ({_described(self.grid)}) than '
            f"the volume ({_described(grid)}); use the volume that they were made on, or make new "
            "ones."
        )

    def _check(self, slice_index: int, box: Box | None = None) -> None:
        """Raise PromptError if there is no such slice, or if the box reaches outside it."""
        if not 0 <= slice_index < self.grid.count:
            raise PromptError(
                f'"{self.name}" cannot have a box in slice {slice_index}; the volume has slices 0 '
                f"to {self.grid.count - 1} along {AXES[self.grid.axis]}."
            )
        if box is not None and box.clipped(self.grid.shape) != box:
            rows, columns = self.grid.shape
            raise PromptError(
                f'The box {box.edges} (x0, y0, x1, y1) of "{self.name}" reaches out of slice '
                f"{slice_index}, which has {columns} columns and {rows} rows; cut it to the slice."
            )


def _rectangles(block: Box3D, grid: SliceGrid, name: str) -> dict[int, Box]:
    """Return the part of a block within the volume as boxes by slice index."""
    rows, columns = grid.shape
    rectangle = grid.box_of(block).overlap(Box(0, 0, columns, rows))
    slices = grid.slices_of(block)
    slices = range(max(slices.start, 0), min(slices.stop, grid.count))
    if rectangle is None or not slices:
        raise PromptError(f'The 3-D box of "{name}" covers no slice; move it over the organ.')
    return dict.fromkeys(slices, rectangle)


def _fade(boxes: dict[int, Box], last: int, key: Box, step: int, thickness: float) -> None:
    """Blend the automatic `boxes` beyond the last edited slice with its box, in place.

    Args:
        last: index of the last edited slice.
        key: its box.
        step: 1 for the slices after it, -1 for those before it.
        thickness: mm from slice to slice.
    """
    beyond = sorted((k for k in boxes if (k - last) * step > 0), key=lambda k: abs(k - last))
    for k in beyond:
        if (distance := abs(k - last) * thickness) < FADE_MM:
            boxes[k] = key.towards(boxes[k], distance / FADE_MM)
    for k in range(last + step, beyond[0], step) if beyond else ():
        boxes[k] = key.towards(boxes[beyond[0]], (k - last) / (beyond[0] - last))


def _described(grid: SliceGrid) -> str:
    """Describe a grid for an error message."""
    size = " × ".join(map(str, grid.geometry.size))
    spacing = " × ".join(f"{mm:.3g}" for mm in grid.geometry.spacing)
    origin = ", ".join(f"{mm:.1f}" for mm in grid.geometry.affine[:3, 3])
    return f"{size} voxels of {spacing} mm from ({origin}), slices along {AXES[grid.axis]}"


# --- file


def boxes_to_json(organs: Sequence[KeyFrames]) -> str:
    """Write boxes of organs on one grid as text; `boxes_from_json` reads equal ones.

    Raises:
        PromptError: no organ, or organs on different grids.
    """
    if not organs:
        raise PromptError("There are no boxes to save.")
    grid = organs[0].grid
    for organ in organs:
        if organ.grid != grid:
            raise PromptError(
                f'The boxes of "{organ.name}" and "{organs[0].name}" lie on different grids; save '
                "them to a file each."
            )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "grid": {**grid.geometry.to_json(), "axis": AXES[grid.axis]},
        "organs": [frames_to_json(organ) for organ in organs],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    # A box a line: for those who edit the file.
    return re.sub(r"\[\n[^][{}\"]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"


def frames_to_json(frames: KeyFrames) -> dict[str, Any]:
    """Return the boxes of one organ as JSON values, without their grid."""
    return {
        "name": frames.name,
        "value": frames.label,
        "automatic": _edges(frames.automatic),
        "edited": _edges(frames.edited),
        "off": sorted(frames.off),
        "limit": frames.limit and [list(frames.limit.lower), list(frames.limit.upper)],
        "moved": None if frames.moved is None else _edges(frames.moved),
    }


def _edges(boxes: Mapping[int, Box]) -> dict[str, list[float]]:
    return {str(k): list(box.edges) for k, box in boxes.items()}


def boxes_from_json(text: str, source: str = "This text") -> tuple[KeyFrames, ...]:
    """Read boxes that `boxes_to_json` wrote; `source` names the text in errors.

    Raises:
        PromptError: another format, a newer version, incomplete, or with impossible boxes.
    """
    content = parse_json(text, source, PromptError)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PromptError(
            f'{source} does not hold boxes (no "format": "{FORMAT}"); choose another.'
        )
    if content.get("version") != VERSION:
        raise PromptError(
            f"{source} has version {content.get('version')!r} of the format, this software reads "
            f"{VERSION}; update it or save the boxes again."
        )
    try:
        grid = content["grid"]
        slices = SliceGrid(Geometry.from_json(grid), list(AXES).index(grid["axis"]))
        organs = tuple(frames_from_json(entry, slices) for entry in content["organs"])
    except KeyError as error:
        raise PromptError(f"{source} lacks {error}; save the boxes again.") from error
    except (PromptError, VolumeError) as error:
        raise PromptError(f"{source} cannot be used: {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PromptError(f"{source} is damaged ({error}); save the boxes again.") from error
    if odd := [organ.name for organ in organs if UNSHOWN.search(organ.name)]:
        raise PromptError(f"{source}: {odd[0]!r} is no name of an organ; write it on one line.")
    if len({organ.label for organ in organs}) < len(organs):
        raise PromptError(f"{source} has two organs of one label; give each its own.")
    return organs


def frames_from_json(entry: Mapping[str, Any], grid: SliceGrid) -> KeyFrames:
    """Read the boxes of one organ on a grid that `frames_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: `entry` is damaged.
        PromptError: the boxes are impossible on this grid.
    """
    name, label, limit, moved = (entry[key] for key in ("name", "value", "limit", "moved"))
    if not isinstance(name, str) or type(label) is not int:
        raise TypeError(f"an organ is called {name!r} with the label {label!r}")
    return KeyFrames(
        name,
        label,
        grid,
        automatic=_boxes(entry["automatic"]),
        edited=_boxes(entry["edited"]),
        off=frozenset(int(k) for k in entry["off"]),
        limit=None if limit is None else Box3D(*limit),
        moved=None if moved is None else _boxes(moved),
    )


def _boxes(edges: Mapping[str, Sequence[float]]) -> dict[int, Box]:
    if len({int(k) for k in edges}) < len(edges):
        raise ValueError("a slice has two boxes")
    return {int(k): Box(*each) for k, each in edges.items()}


def save_boxes(path: str | Path, organs: Sequence[KeyFrames]) -> None:
    """Write a file of boxes atomically.

    Raises:
        PromptError: as `boxes_to_json`, or the file cannot be written.
    """
    path = Path(path)
    text = boxes_to_json(organs)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PromptError(
            f"{path} could not be written ({error.strerror}); check that its folder exists, may be "
            "written to and has space."
        ) from error


def load_boxes(path: str | Path) -> tuple[KeyFrames, ...]:
    """Read a file of boxes; `KeyFrames.require` checks that they belong to a volume.

    Raises:
        PromptError: as `boxes_from_json`, or the file cannot be read.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise PromptError(
            f"{path} could not be read ({error.strerror}); check that it is there."
        ) from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} does not hold boxes (it is no text); choose another.") from error
    return boxes_from_json(text, str(path))
