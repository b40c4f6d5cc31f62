# SPDX-License-Identifier: Apache-2.0
"""Crops of slices around an organ, so that SAM sees small organs with many pixels."""

import math
from collections.abc import Mapping

from ..boxes.boxes import Box, SliceGrid
from .mosaic import Rectangle

CONTEXT = 1.5
"""Ratio of a crop's side to the longer side of its box."""

SMALLEST_MM = 50.0
"""Least side of a crop: on a tile of 128 pixels, a smaller one would have finer pixels than those
that a small SAM is trained on."""

ROOM = 0.05
"""Least distance of a box from its crop's edges, as a share of the crop's side."""


def crops(
    automatic: Mapping[int, Box], needed: Mapping[int, Box], grid: SliceGrid
) -> dict[int, Rectangle]:
    """Return squares (in mm, as far as the slice has room) around an organ, by slice index.

    The square follows the automatic box as long as the needed box lies well within it, so that an
    edit seldom needs another crop. Its side is at least half of that in the slice that shows most
    of the organ, as SAM needs so much context to recognise the organ.

    Args:
        automatic: boxes before any edit, by slice index; may lack slices, or be empty.
        needed: the box that has to lie in the crop, by slice index.
    """
    longest = max((longer_mm(box, grid) for box in (automatic or needed).values()), default=0.0)
    squares = {}
    for k, box in needed.items():
        usual = automatic.get(k, box)
        squares[k] = _square(usual, longest / 2, grid)
        if not _has_room(squares[k], box, grid):
            squares[k] = _square(Box.around([usual, box]), longest / 2, grid)
    return squares


def longer_mm(box: Box, grid: SliceGrid) -> float:
    """Return the length of a box's longer side in mm."""
    row_mm, column_mm = grid.spacing
    return max(box.width * column_mm, box.height * row_mm)


def _square(box: Box, least_mm: float, grid: SliceGrid) -> Rectangle:
    """Return the square around a box of at least that length, moved into the slice."""
    side = max(CONTEXT * max(longer_mm(box, grid), least_mm), SMALLEST_MM)
    lows, highs = [], []
    middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    for centre, mm, pixels in zip(middle, grid.spacing[::-1], grid.shape[::-1], strict=True):
        length = min(pixels, math.ceil(side / mm))
        low = min(max(0, round(centre - length / 2)), pixels - length)
        lows.append(low)
        highs.append(low + length)
    return lows[0], lows[1], highs[0], highs[1]


def _has_room(crop: Rectangle, box: Box, grid: SliceGrid) -> bool:
    """Check that a box keeps `ROOM` from those edges of its crop that are not the slice's."""
    rows, columns = grid.shape
    x0, y0, x1, y1 = crop
    across, down = ROOM * (x1 - x0), ROOM * (y1 - y0)
    return (
        box.x0 >= (x0 + across if x0 > 0 else 0)
        and box.y0 >= (y0 + down if y0 > 0 else 0)
        and box.x1 <= (x1 - across if x1 < columns else columns)
        and box.y1 <= (y1 - down if y1 < rows else rows)
    )
