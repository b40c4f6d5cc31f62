# SPDX-License-Identifier: Apache-2.0
"""The slice boxes of organs: automatic ones, those a user edits, undo, and their file."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import PromptError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry

from .boxes import AXES, Box, Box3D, SliceGrid, boxes_from_coarse

FADE_MM = 15.0
"""How far beyond the last edited slice its box is felt. Organs, and what a network gets wrong about
them, change over a centimetre or two, whatever the slices' thickness."""

FORMAT = "srcsm-boxes"
VERSION = 1


@dataclass(frozen=True)
class KeyFrames:
    """The boxes of one organ on one grid; every edit gives a new object.

    The box of a slice is, in this order:

    1. none where the slice is switched off; such a slice has no say in others either;
    2. the edited one;
    3. between two edited slices, their boxes interpolated;
    4. beyond the last edited slice, the automatic box, mixed with that edited one up to `FADE_MM`
       away from it. Slices without an automatic box between the two are interpolated;
    5. the automatic one.

    Where the 3-D box was dragged, `moved` takes the place of the automatic boxes in all of this. In
    the end `limit` cuts them all.

    Attributes:
        name: of the organ.
        value: its label, 1 or more.
        grid: where the boxes lie.
        automatic: boxes by slice number that the organ started from, mostly those of a coarse mask.
        edited: boxes by slice number, made by hand.
        off: numbers of slices that are to have no box.
        limit: a block that no box may leave, or None.
        moved: boxes by slice number in place of the automatic ones, as `dragging.dragged` moved and
            stretched them; None where it did not.

    Raises:
        PromptError: a slice, a box or the limit lies outside the volume; a value less than 1.
    """

    name: str
    value: int
    grid: SliceGrid
    automatic: Mapping[int, Box] = field(default_factory=dict)
    edited: Mapping[int, Box] = field(default_factory=dict)
    off: frozenset[int] = frozenset()
    limit: Box3D | None = None
    moved: Mapping[int, Box] | None = None

    def __post_init__(self) -> None:
        if self.value < 1:
            raise PromptError(f'Organ "{self.name}" has the label {self.value}; use 1 or more.')
        # Copies, so that no one else changes what is kept for undo.
        for name in ("automatic", "edited", "moved"):
            if getattr(self, name) is None:
                continue
            boxes = {int(n): box for n, box in sorted(getattr(self, name).items())}
            object.__setattr__(self, name, boxes)
            for n, box in boxes.items():
                self._check(n, box)
        object.__setattr__(self, "off", frozenset(int(n) for n in self.off))
        for n in self.off:
            self._check(n)
        if self.limit is not None:
            _rectangles(self.limit, self.grid, self.name)

    @classmethod
    def from_coarse(
        cls, name: str, value: int, coarse: np.ndarray, grid: SliceGrid, **options: float
    ) -> Self:
        """Automatic boxes from a coarse mask; for the options see `boxes_from_coarse`."""
        return cls(name, value, grid, boxes_from_coarse(coarse, grid, **options))

    @classmethod
    def drawn(cls, name: str, value: int, block: Box3D, grid: SliceGrid) -> Self:
        """An organ that was missed: a block's rectangle in each of its slices.

        Raises:
            PromptError: the block lies outside the volume.
        """
        return cls(name, value, grid, _rectangles(block, grid, name))

    def edit(self, n: int, box: Box) -> Self:
        """With `box`, cut to the slice, as that of slice n, which is switched on by it.

        A limit that it leaves is widened.

        Raises:
            PromptError: no such slice, or the box lies outside it.
        """
        box = box.clipped(self.grid.shape)
        limit = self.limit
        if limit is not None:
            block = self.grid.block(box, n)
            limit = Box3D(
                np.minimum(limit.lower, block.lower), np.maximum(limit.upper, block.upper)
            )
        return dataclasses.replace(
            self, edited={**self.edited, n: box}, off=self.off - {n}, limit=limit
        )

    def switch_off(self, n: int) -> Self:
        """Without a box in slice n; an edited one comes back when it is switched on again."""
        return dataclasses.replace(self, off=self.off | {n})

    def switch_on(self, n: int) -> Self:
        """With slice n as it was before it was switched off."""
        return dataclasses.replace(self, off=self.off - {n})

    def limited(self, limit: Box3D | None) -> Self:
        """With all boxes cut to a block, or uncut.

        Raises:
            PromptError: the block lies outside the volume.
        """
        return dataclasses.replace(self, limit=limit)

    def reset(self, n: int | None = None) -> Self:
        """Without what was edited in slice n; without a number, with the automatic boxes alone, as
        they were before the 3-D box was dragged."""
        if n is None:
            return dataclasses.replace(self, edited={}, off=frozenset(), limit=None, moved=None)
        edited = {m: box for m, box in self.edited.items() if m != n}
        return dataclasses.replace(self, edited=edited, off=self.off - {n})

    @property
    def unedited(self) -> Mapping[int, Box]:
        """The boxes by slice number that edits start from."""
        return self.automatic if self.moved is None else self.moved

    def effective(self) -> dict[int, Box]:
        """The boxes to use, by slice number, ascending; no entry for a slice without one."""
        boxes = {n: box for n, box in self.unedited.items() if n not in self.off}
        edited = {n: box for n, box in self.edited.items() if n not in self.off}
        if edited:
            _fade(boxes, min(edited), edited[min(edited)], -1, self.grid.thickness)
            _fade(boxes, max(edited), edited[max(edited)], 1, self.grid.thickness)
        for first, last in pairwise(edited):
            for n in range(first + 1, last):
                boxes[n] = edited[first].towards(edited[last], (n - first) / (last - first))
        boxes |= edited
        if self.limit is not None:
            cuts = _rectangles(self.limit, self.grid, self.name)
            cut = {n: boxes[n].overlap(cuts[n]) for n in boxes.keys() & cuts.keys()}
            boxes = {n: box for n, box in cut.items() if box is not None}
        return {n: boxes[n] for n in sorted(boxes) if n not in self.off}

    def bounds3d(self) -> Box3D | None:
        """The smallest block around all boxes to use; None where there are none."""
        boxes = self.effective()
        if not boxes:
            return None
        edges = np.array([box.edges for box in boxes.values()])
        around = Box(*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0))
        return self.grid.block(around, min(boxes), max(boxes))

    def require(self, grid: SliceGrid) -> None:
        """Raise PromptError unless the boxes were made on this grid."""
        if self.grid.matches(grid):
            return
        raise PromptError(
            f'The boxes of "{self.name}" belong to another grid ({_described(self.grid)}) than '
            f"the volume ({_described(grid)}); use the volume that they were made on, or make new "
            "ones."
        )

    def _check(self, n: int, box: Box | None = None) -> None:
        """Raise PromptError where there is no slice n, or where the box reaches outside it."""
        if not 0 <= n < self.grid.count:
            raise PromptError(
                f'"{self.name}" cannot have a box in slice {n}; the volume has slices 0 to '
                f"{self.grid.count - 1} along {AXES[self.grid.axis]}."
            )
        if box is not None and box.clipped(self.grid.shape) != box:
            rows, columns = self.grid.shape
            raise PromptError(
                f'The box {box.edges} (x0, y0, x1, y1) of "{self.name}" reaches out of slice {n}, '
                f"which has {columns} columns and {rows} rows; cut it to the slice."
            )


def _rectangles(block: Box3D, grid: SliceGrid, name: str) -> dict[int, Box]:
    """The part of a block within the volume, slice by slice."""
    rows, columns = grid.shape
    rectangle = grid.box_of(block).overlap(Box(0, 0, columns, rows))
    slices = grid.slices_of(block)
    slices = range(max(slices.start, 0), min(slices.stop, grid.count))
    if rectangle is None or not slices:
        raise PromptError(f'The 3-D box of "{name}" covers no slice; move it over the organ.')
    return dict.fromkeys(slices, rectangle)


def _fade(boxes: dict[int, Box], last: int, key: Box, step: int, thickness: float) -> None:
    """Change automatic `boxes` from the last edited slice on, upwards (step 1) or downwards."""
    beyond = sorted((n for n in boxes if (n - last) * step > 0), key=lambda n: abs(n - last))
    for n in beyond:
        if (distance := abs(n - last) * thickness) < FADE_MM:
            boxes[n] = key.towards(boxes[n], distance / FADE_MM)
    for n in range(last + step, beyond[0], step) if beyond else ():
        boxes[n] = key.towards(boxes[beyond[0]], (n - last) / (beyond[0] - last))


def _described(grid: SliceGrid) -> str:
    size = " × ".join(map(str, grid.geometry.size))
    spacing = " × ".join(f"{mm:.3g}" for mm in grid.geometry.spacing)
    origin = ", ".join(f"{mm:.1f}" for mm in grid.geometry.affine[:3, 3])
    return f"{size} voxels of {spacing} mm from ({origin}), slices along {AXES[grid.axis]}"


# --- undo

State = TypeVar("State")


@dataclass(frozen=True)
class History(Generic[State]):
    """States one can go back to, such as tuples of `KeyFrames`; every step gives a new object."""

    present: State
    past: tuple[State, ...] = ()
    future: tuple[State, ...] = ()

    def changed(self, state: State) -> Self:
        """After an edit; what had been undone is gone. Nothing happens where nothing changed."""
        if state == self.present:
            return self
        return type(self)(state, (*self.past, self.present))

    def undo(self) -> Self:
        """One edit back; itself where there is none."""
        if not self.past:
            return self
        return type(self)(self.past[-1], self.past[:-1], (self.present, *self.future))

    def redo(self) -> Self:
        """One undone edit forth; itself where there is none."""
        if not self.future:
            return self
        return type(self)(self.future[0], (*self.past, self.present), self.future[1:])


# --- file


def boxes_to_json(organs: Sequence[KeyFrames]) -> str:
    """Boxes of organs on one grid as text, exactly (`boxes_from_json` gives equal ones).

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
        "organs": [
            {
                "name": organ.name,
                "value": organ.value,
                "automatic": _edges(organ.automatic),
                "edited": _edges(organ.edited),
                "off": sorted(organ.off),
                "limit": organ.limit and [list(organ.limit.lower), list(organ.limit.upper)],
                "moved": None if organ.moved is None else _edges(organ.moved),
            }
            for organ in organs
        ],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    # A box a line: for those who edit the file.
    return re.sub(r"\[\n[^][{}\"]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"


def _edges(boxes: Mapping[int, Box]) -> dict[str, list[float]]:
    return {str(n): list(box.edges) for n, box in boxes.items()}


def boxes_from_json(text: str, where: str = "This text") -> tuple[KeyFrames, ...]:
    """Boxes from what `boxes_to_json` wrote; `where` names it in errors.

    Raises:
        PromptError: not such text, of a newer version, incomplete, or with impossible boxes.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where} is not JSON ({error}); save the boxes again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PromptError(f'{where} does not hold boxes (no "format": "{FORMAT}"); choose another.')
    if content.get("version") != VERSION:
        raise PromptError(
            f"{where} has version {content.get('version')} of the format, this software reads "
            f"{VERSION}; update it or save the boxes again."
        )
    try:
        grid = content["grid"]
        slices = SliceGrid(Geometry.from_json(grid), list(AXES).index(grid["axis"]))
        return tuple(_organ(entry, slices) for entry in content["organs"])
    except KeyError as error:
        raise PromptError(f"{where} lacks {error}; save the boxes again.") from error
    except (PromptError, VolumeError) as error:
        raise PromptError(f"{where} cannot be used: {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PromptError(f"{where} is damaged ({error}); save the boxes again.") from error


def _organ(entry: dict[str, Any], grid: SliceGrid) -> KeyFrames:
    name, value, limit, moved = (entry[key] for key in ("name", "value", "limit", "moved"))
    if not isinstance(name, str) or type(value) is not int:
        raise TypeError(f"an organ is called {name!r} with the label {value!r}")
    return KeyFrames(
        name,
        value,
        grid,
        automatic=_boxes(entry["automatic"]),
        edited=_boxes(entry["edited"]),
        off=frozenset(int(n) for n in entry["off"]),
        limit=None if limit is None else Box3D(*limit),
        moved=None if moved is None else _boxes(moved),
    )


def _boxes(edges: Mapping[str, Sequence[float]]) -> dict[int, Box]:
    return {int(n): Box(*each) for n, each in edges.items()}


def save_boxes(path: str | Path, organs: Sequence[KeyFrames]) -> None:
    """Write boxes; the file appears at once and complete, or not at all.

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


def load_boxes(path: str | Path, grid: SliceGrid | None = None) -> tuple[KeyFrames, ...]:
    """Read boxes and, where a grid is given, check that they belong to it.

    Raises:
        PromptError: as `boxes_from_json`, the file cannot be read, or the grid is another.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PromptError(
            f"{path} could not be read ({error.strerror}); check that it is there."
        ) from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} does not hold boxes (it is no text); choose another.") from error
    organs = boxes_from_json(text, str(path))
    if grid is not None:
        for organ in organs:
            organ.require(grid)
    return organs
