# SPDX-License-Identifier: Apache-2.0
"""Boxes around organs, slice by slice: the grid they lie on, and how a coarse mask gives them.

Wang et al., "Leveraging SAM for Single-Source Domain Generalization in Medical Image
Segmentation" (SAMMed), mask filter and boxes.

All coordinates are edges in voxels: voxel n covers n to n + 1, so a box over the pixels 3, 4 and 5
reaches from 3 to 6. The voxel index of an edge is half a voxel less (2.5 and 5.5).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

import numpy as np

from SRCSMSegmenterLib.components import smaller_components
from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

AXES = "IJK"
SMALLEST_SIDE = 0.1
"""Pixels; what is left of a box when it is cut counts as nothing where a side is shorter."""


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
        """Pixels along x."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Pixels along y."""
        return self.y1 - self.y0

    def overlap(self, other: "Box") -> "Box | None":
        """What both boxes share; None where that is less than `SMALLEST_SIDE` wide or high."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Box(x0, y0, x1, y1) if min(x1 - x0, y1 - y0) >= SMALLEST_SIDE else None

    def clipped(self, shape: tuple[int, int]) -> "Box":
        """The part of the box within a slice of `shape` (rows, columns).

        Raises:
            PromptError: less than `SMALLEST_SIDE` is left of it.
        """
        rows, columns = shape
        if (inside := self.overlap(Box(0, 0, columns, rows))) is None:
            raise PromptError(
                f"The box {self.edges} (x0, y0, x1, y1) covers nothing in a slice of {columns} "
                f"columns and {rows} rows; draw it within the slice."
            )
        return inside

    def towards(self, other: "Box", share: float) -> "Box":
        """This box (share 0), the other (share 1) or, edge by edge, one between them."""
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
        """The smallest block around points (n, 3) in RAS mm, such as the corners of an ROI."""
        edges = geometry.to_ijk(points) + 0.5
        return cls(edges.min(axis=0), edges.max(axis=0))

    def oriented(self, geometry: Geometry) -> "OrientedBox":
        """The block in patient space.

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
            axes[:, 2] *= -1  # the same block: it is as long to both sides of its middle
        lower, upper = np.array(self.lower), np.array(self.upper)
        centre = geometry.to_ras((lower + upper) / 2 - 0.5)
        return OrientedBox(centre, axes, (upper - lower) * geometry.spacing)


@dataclass(frozen=True, eq=False)
class OrientedBox:
    """A box in patient space, as a Slicer ROI has it.

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
        """4x4, mm along the box's axes from its centre -> RAS mm (an ROI's object to node)."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes
        matrix[:3, 3] = self.centre
        return matrix

    @property
    def corners(self) -> np.ndarray:
        """(8, 3) RAS mm."""
        signs = np.array(list(product((-0.5, 0.5), repeat=3)))
        return self.centre + (signs * self.size) @ self.axes.T


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """The slices of a volume along one of its axes.

    Rows and columns of a slice are the other two axes in the order of the (K, J, I) array: (J, I)
    across K, (K, I) across J, (K, J) across I. Grids are equal where sizes, affines and axes are.

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
        """mm from row to row and from column to column."""
        row, column = self.geometry.spacing[[self.row_axis, self.column_axis]]
        return float(row), float(column)

    @property
    def thickness(self) -> float:
        """mm from slice to slice."""
        return float(self.geometry.spacing[self.axis])

    def stack(self, array: np.ndarray) -> np.ndarray:
        """A (K, J, I) array as a view of its slices, (n, rows, columns).

        Raises:
            PromptError: the array is not one of this grid.
        """
        if array.shape != self.geometry.shape:
            raise PromptError(
                f"An array of {array.shape} voxels (K, J, I) does not fit boxes on a grid of "
                f"{self.geometry.shape}; use the volume that the boxes were made on."
            )
        return np.moveaxis(array, 2 - self.axis, 0)

    def slice_of(self, array: np.ndarray, n: int) -> np.ndarray:
        """Slice n of a (K, J, I) array, a view of (rows, columns)."""
        return self.stack(array)[n]

    def matches(self, other: "SliceGrid", tolerance: float = 1e-3) -> bool:
        """True where both have the same axis and no voxel is off by over `tolerance` voxel."""
        return self.axis == other.axis and self.geometry.matches(other.geometry, tolerance)

    def block(self, box: Box, first: int, last: int | None = None) -> Box3D:
        """The voxels that a box covers in slice `first`, or in all from there to `last`."""
        lower, upper = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        lower[self.column_axis], upper[self.column_axis] = box.x0, box.x1
        lower[self.row_axis], upper[self.row_axis] = box.y0, box.y1
        lower[self.axis], upper[self.axis] = first, (first if last is None else last) + 1
        return Box3D(tuple(lower), tuple(upper))

    def box_of(self, block: Box3D) -> Box:
        """The rectangle of a block, the same in all its slices."""
        column, row = self.column_axis, self.row_axis
        return Box(block.lower[column], block.lower[row], block.upper[column], block.upper[row])

    def slices_of(self, block: Box3D) -> range:
        """The slices whose middle lies within a block; they may lie beyond the volume."""
        first, end = block.lower[self.axis], block.upper[self.axis]
        return range(math.ceil(first - 0.5), math.floor(end - 0.5) + 1)

    def middle_slice(self, block: Box3D) -> int:
        """The slice in which a block's middle lies; it may lie beyond the volume."""
        return math.floor((block.lower[self.axis] + block.upper[self.axis]) / 2)


def filter_mask(
    mask: np.ndarray,
    grid: SliceGrid,
    probability: np.ndarray | None = None,
    *,
    in_volume: bool = True,
    in_slices: bool = True,
) -> np.ndarray:
    """Keep the largest face-connected component of a mask.

    Args:
        mask: bool (K, J, I), one organ.
        grid: its slices.
        probability: (K, J, I) of the organ; sure voxels weigh more (`smaller_components`).
        in_volume: keep the largest component in three dimensions.
        in_slices: then in every slice the largest (4-connected) component of what is left; with
            `in_volume` off this is the paper's filter.

    Returns:
        bool (K, J, I). Of components of equal size the first in the array's order stays.
    """
    kept = mask.copy()
    weights = None if probability is None else grid.stack(probability)
    _filter(grid.stack(kept), weights, in_volume, in_slices)
    return kept


def boxes_from_coarse(
    coarse: np.ndarray,
    grid: SliceGrid,
    box_confidence: float = 0.75,
    shrink: int = 1,
    *,
    in_volume: bool = True,
    in_slices: bool = True,
) -> dict[int, Box]:
    """A box around what a coarse network is sure of, for each slice that shows any of it.

    Args:
        coarse: (K, J, I), probabilities of one organ, or a bool mask (probabilities 0 and 1).
        grid: its slices.
        box_confidence: only probabilities above it count (the paper's theta 1).
        shrink: average blocks of shrink x shrink pixels first; the paper has 4 at 512 pixels. Box
            edges are then multiples of it, but for the slice's own edge. 1, the default, is as
            fast.
        in_volume, in_slices: as in `filter_mask`; both off gives unfiltered boxes.

    Returns:
        Boxes by slice number, ascending. No entry for a slice without a component; empty where the
        organ has none at all (`slices_without_box` tells where that leaves a coarse mask alone).

    Raises:
        PromptError: `coarse` does not lie on the grid, `box_confidence` is not from [0, 1), or
            `shrink` is less than 1.
    """
    if not 0 <= box_confidence < 1:
        raise PromptError(
            f"A box confidence of {box_confidence:g} is not a probability from 0 to below 1."
        )
    if shrink < 1:
        raise PromptError(f"Slices cannot be shrunk by {shrink}; give 1 or more.")
    stack = grid.stack(coarse)
    if shrink > 1:
        stack = _shrunk(stack, shrink)
    if stack.dtype == bool:
        sure, weights = stack.copy(), None
    else:
        sure, weights = stack > box_confidence, stack
    _filter(sure, weights, in_volume, in_slices)
    rows, columns = grid.shape
    boxes = {}
    for n in np.flatnonzero(sure.any(axis=(1, 2))):
        y0, y1 = _extent(sure[n].any(axis=1))
        x0, x1 = _extent(sure[n].any(axis=0))
        boxes[int(n)] = Box(
            x0 * shrink, y0 * shrink, min(x1 * shrink, columns), min(y1 * shrink, rows)
        )
    return boxes


def slices_without_box(coarse: np.ndarray, grid: SliceGrid, boxes: Collection[int]) -> list[int]:
    """The slices that show the organ (probability of at least a half) but have no box.

    What the coarse network found there was too unsure for a box, or not part of the largest
    component.

    Args:
        coarse: (K, J, I), probabilities of one organ, or a bool mask.
        grid: its slices.
        boxes: the slices that have one.
    """
    shown = (grid.stack(coarse) >= 0.5).any(axis=(1, 2))
    return [int(n) for n in np.flatnonzero(shown) if n not in boxes]


def _filter(
    stack: np.ndarray, weights: np.ndarray | None, in_volume: bool, in_slices: bool
) -> None:
    """Drop all but the largest components from a bool stack (n, rows, columns), in place.

    Args:
        weights: probabilities of the same shape; None counts every voxel alike.
    """
    if not stack.any():
        return
    # Organs fill a small part of a volume; the rest need not be searched.
    extents = (_extent(stack.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    around = tuple(slice(*extent) for extent in extents)
    stack, weights = stack[around], None if weights is None else weights[around]
    if in_volume:
        stack &= ~smaller_components(stack.view(np.uint8), weights)
    if in_slices:
        for n, mask in enumerate(stack):
            mask &= ~smaller_components(
                mask.view(np.uint8), None if weights is None else weights[n]
            )


def _shrunk(stack: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of factor x factor pixels; those at the far edges may be smaller."""
    for axis in (1, 2):
        starts = np.arange(0, stack.shape[axis], factor)
        sums = np.add.reduceat(stack, starts, axis=axis, dtype=np.float32)
        lengths = np.diff(starts, append=stack.shape[axis]).astype(np.float32)
        stack = sums / lengths.reshape((-1, 1) if axis == 1 else -1)
    return stack


def _extent(line: np.ndarray) -> tuple[int, int]:
    """First True and one past the last of a bool array that has any."""
    return int(line.argmax()), len(line) - int(line[::-1].argmax())
