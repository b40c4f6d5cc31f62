# SPDX-License-Identifier: Apache-2.0
"""Boxes and points in the slices of a volume, and the grid of these slices.

All coordinates are edges in voxels: voxel n covers n to n + 1, so a box over the pixels 3, 4 and 5
reaches from 3 to 6. The voxel index of an edge is half a voxel less (2.5 and 5.5).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

AXES = "IJK"
SMALLEST_SIDE = 0.1
"""Pixels; a box that was cut counts as empty if one of its sides is shorter."""

MISSED_SLICES = 20
"""The first box of a missed organ reaches over one of so many slices to both sides."""


FLAT = 2.0
"""Voxels; an ROI that is thinner was drawn in one slice view."""


class PointPrompt(NamedTuple):
    """A point in a slice that SAM is given beside the box.

    Attributes:
        x, y: edge coordinates in pixels along columns and rows.
        positive: True if the point lies in the organ, False if it lies outside.
    """

    x: float
    y: float
    positive: bool = True


@dataclass(frozen=True)
class Box:
    """A rectangle in a slice, edges in pixels: x along the columns, y along the rows.

    Raises:
        PromptError: not finite, inverted or of no size.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        for name in ("x0", "y0", "x1", "y1"):
            object.__setattr__(self, name, float(getattr(self, name)))
        # Written so that NaN fails.
        if not (-math.inf < self.x0 < self.x1 < math.inf):
            raise PromptError(
                f"A box from x = {self.x0:g} to {self.x1:g} is none; x0 has to be less than x1."
            )
        if not (-math.inf < self.y0 < self.y1 < math.inf):
            raise PromptError(
                f"A box from y = {self.y0:g} to {self.y1:g} is none; y0 has to be less than y1."
            )

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1), the order SAM takes."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def width(self) -> float:
        """Length along x in pixels."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Length along y in pixels."""
        return self.y1 - self.y0

    def overlap(self, other: "Box") -> "Box | None":
        """Return the common part of two boxes; None if it is narrower than `SMALLEST_SIDE`."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Box(x0, y0, x1, y1) if min(x1 - x0, y1 - y0) >= SMALLEST_SIDE else None

    @classmethod
    def around(cls, boxes: Iterable["Box"]) -> "Box":
        """Return the smallest box around others, of which there is at least one."""
        edges = np.array([box.edges for box in boxes])
        return cls(*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0))

    def clipped(self, shape: tuple[int, int]) -> "Box":
        """Cut the box to a slice.

        Args:
            shape: (rows, columns) of the slice.

        Raises:
            PromptError: the part within the slice is narrower than `SMALLEST_SIDE`.
        """
        rows, columns = shape
        if (inside := self.overlap(Box(0, 0, columns, rows))) is None:
            raise PromptError(
                f"The box {self.edges} (x0, y0, x1, y1) covers nothing in a slice of {columns} "
                f"columns and {rows} rows; draw it within the slice."
            )
        return inside

    def towards(self, other: "Box", share: float) -> "Box":
        """Interpolate the edges between this box (share 0) and another one (share 1)."""
        # Rounding must not carry an edge past the other box's.
        return Box(
            *(
                min(max(a + share * (b - a), min(a, b)), max(a, b))
                for a, b in zip(self.edges, other.edges, strict=True)
            )
        )


@dataclass(frozen=True)
class Box3D:
    """A block of a voxel grid.

    Attributes:
        lower, upper: edges along (I, J, K) in voxels.

    Raises:
        PromptError: not finite, inverted or of no size.
    """

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", tuple(float(edge) for edge in self.lower))
        object.__setattr__(self, "upper", tuple(float(edge) for edge in self.upper))
        if not len(self.lower) == len(self.upper) == 3:
            raise PromptError("A 3-D box has three lower and three upper edges, along I, J, K.")
        for axis, low, high in zip(AXES, self.lower, self.upper, strict=True):
            if not (-math.inf < low < high < math.inf):
                raise PromptError(
                    f"A 3-D box from {axis} = {low:g} to {high:g} is none; its lower edge has to "
                    "be less than its upper one."
                )

    @classmethod
    def around(cls, points: np.ndarray, geometry: Geometry) -> "Box3D":
        """Return the smallest block around points such as the corners of an ROI.

        Args:
            points: (n, 3) RAS mm.
        """
        edges = geometry.to_ijk(points) + 0.5
        return cls(edges.min(axis=0), edges.max(axis=0))

    def oriented(self, geometry: Geometry) -> "OrientedBox":
        """Convert the block to patient space.

        Raises:
            PromptError: the grid is sheared, so that its blocks have no right angles.
        """
        axes = geometry.direction.copy()
        if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
            raise PromptError(
                "The axes of this volume are not at right angles, so a box of its voxels has no "
                "orientation in space; resample the volume first."
            )
        if np.linalg.det(axes) < 0:
            axes[:, 2] *= -1  # the same block, which is symmetric about its centre
        lower, upper = np.array(self.lower), np.array(self.upper)
        centre = geometry.to_ras((lower + upper) / 2 - 0.5)
        return OrientedBox(centre, axes, (upper - lower) * geometry.spacing)


@dataclass(frozen=True, eq=False)
class OrientedBox:
    """A box in patient space, in the form of a Slicer ROI.

    Attributes:
        centre: (3,) RAS mm.
        axes: 3x3, columns are right-handed orthogonal unit vectors in RAS.
        size: (3,) mm along these axes.
    """

    centre: np.ndarray
    axes: np.ndarray
    size: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """4x4 matrix from mm along the box's axes to RAS mm (an ROI's object to node)."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes
        matrix[:3, 3] = self.centre
        return matrix

    @property
    def corners(self) -> np.ndarray:
        """The corners, (8, 3) RAS mm."""
        signs = np.array(list(product((-0.5, 0.5), repeat=3)))
        return self.centre + (signs * self.size) @ self.axes.T


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """The slices of a volume along one of its axes.

    Rows and columns of a slice are the other two axes in the order of the (K, J, I) array: (J, I)
    across K, (K, I) across J, (K, J) across I. Grids are equal if sizes, affines and axes are.

    Attributes:
        geometry: the volume's grid.
        axis: 0, 1 or 2, the one of I, J, K that is sliced.
    """

    geometry: Geometry
    axis: int

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise PromptError(f"Slices lie across axis 0, 1 or 2 (I, J or K), not {self.axis!r}.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SliceGrid):
            return NotImplemented
        return (
            self.axis == other.axis
            and self.geometry.size == other.geometry.size
            and np.array_equal(self.geometry.affine, other.geometry.affine)
        )

    @property
    def row_axis(self) -> int:
        """The one of I, J, K along which rows are counted (y)."""
        return 1 if self.axis == 2 else 2

    @property
    def column_axis(self) -> int:
        """The one of I, J, K along which columns are counted (x)."""
        return 1 if self.axis == 0 else 0

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.geometry.size[self.axis]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of a slice."""
        return self.geometry.size[self.row_axis], self.geometry.size[self.column_axis]

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance in mm from row to row and from column to column."""
        row, column = self.geometry.spacing[[self.row_axis, self.column_axis]]
        return float(row), float(column)

    @property
    def thickness(self) -> float:
        """Distance in mm from slice to slice."""
        return float(self.geometry.spacing[self.axis])

    def increases(self, axis: int) -> bool:
        """Tell whether a voxel axis runs mostly to the right, to anterior or to superior."""
        direction = self.geometry.direction[:, axis]
        return bool(direction[np.abs(direction).argmax()] > 0)

    def stack(self, array: np.ndarray) -> np.ndarray:
        """Return a view of a (K, J, I) array as slices, (slices, rows, columns).

        Raises:
            PromptError: the array does not have the shape of this grid.
        """
        if array.shape != self.geometry.shape:
            raise PromptError(
                f"An array of {array.shape} voxels (K, J, I) does not fit boxes on a grid of "
                f"{self.geometry.shape}; use the volume that the boxes were made on."
            )
        return np.moveaxis(array, 2 - self.axis, 0)

    def slice_of(self, array: np.ndarray, slice_index: int) -> np.ndarray:
        """Return a view of one slice of a (K, J, I) array, (rows, columns)."""
        return self.stack(array)[slice_index]

    def part(self, first: tuple[int, int, int], shape: tuple[int, int, int]) -> "SliceGrid":
        """Return the slices of a block of the volume.

        Args:
            first: the block's first voxel (k, j, i).
            shape: its shape (k, j, i).
        """
        affine = self.geometry.affine.copy()
        affine[:3, 3] = self.geometry.to_ras(np.array(first[::-1]))
        return SliceGrid(Geometry(shape[::-1], affine), self.axis)

    def matches(self, other: "SliceGrid", tolerance: float = 1e-3) -> bool:
        """Check that the axes are equal and no voxel is off by more than `tolerance` voxel."""
        return self.axis == other.axis and self.geometry.matches(other.geometry, tolerance)

    def block(self, box: Box, first: int, last: int | None = None) -> Box3D:
        """Return the block of a box in slice `first`, or in all slices from `first` to `last`."""
        lower, upper = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        lower[self.column_axis], upper[self.column_axis] = box.x0, box.x1
        lower[self.row_axis], upper[self.row_axis] = box.y0, box.y1
        lower[self.axis], upper[self.axis] = first, (first if last is None else last) + 1
        return Box3D(tuple(lower), tuple(upper))

    def box_of(self, block: Box3D) -> Box:
        """Return the rectangle of a block, which is the same in all its slices."""
        column, row = self.column_axis, self.row_axis
        return Box(block.lower[column], block.lower[row], block.upper[column], block.upper[row])

    def slices_of(self, block: Box3D) -> range:
        """Return the slices whose middle lies within a block, also beyond the volume."""
        first, end = block.lower[self.axis], block.upper[self.axis]
        return range(math.ceil(first - 0.5), math.floor(end - 0.5) + 1)


def missed_organ_block(grid: SliceGrid, slice_index: int) -> Box3D:
    """Return a first box for an organ that was missed, to be moved by hand.

    It covers the middle third of a slice's rows and columns, and reaches over a twentieth of the
    slices, one at least, to both sides of it, as far as the volume goes.
    """
    rows, columns = grid.shape
    box = Box(columns / 3, rows / 3, columns * 2 / 3, rows * 2 / 3)
    reach = max(1, grid.count // MISSED_SLICES)
    return grid.block(box, max(0, slice_index - reach), min(grid.count - 1, slice_index + reach))


def thickened(block: Box3D, grid: SliceGrid) -> Box3D:
    """Return a block that was drawn in one slice view, with a size in every direction.

    Slicer gives an ROI that is drawn in a slice view hardly any thickness across it. A block of one
    slice reaches over as many slices as `missed_organ_block`; one that was drawn across the slices
    becomes as wide as it is high, or as high as it is wide.
    """
    lower, upper = list(block.lower), list(block.upper)
    length = np.subtract(upper, lower)
    reach = max(1, grid.count // MISSED_SLICES)
    if length[grid.axis] < FLAT:
        lower[grid.axis] -= reach
        upper[grid.axis] += reach
    for axis, other in (
        (grid.row_axis, grid.column_axis),
        (grid.column_axis, grid.row_axis),
    ):
        if length[axis] < FLAT <= length[other]:
            spacing = grid.geometry.spacing
            more = (length[other] * spacing[other] / spacing[axis] - length[axis]) / 2
            lower[axis] -= more
            upper[axis] += more
    return Box3D(tuple(lower), tuple(upper))
