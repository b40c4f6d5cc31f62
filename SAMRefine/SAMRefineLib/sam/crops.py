# SPDX-License-Identifier: Apache-2.0
"""Which part of each slice to show SAM, so that small organs get many pixels."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..boxes.boxes import Box, SliceGrid
from .mosaic import Rectangle

CONTEXT = 1.5
"""Sides of a crop over the longer side of its box."""

SMALLEST_MM = 50.0
"""Side of a crop; on a tile of 128 pixels, shorter ones would have finer pixels than any that a
small SAM is trained on."""

ROOM = 0.05
"""Least distance of a box from its crop's edges, as a share of the crop's side."""


def crops(
    automatic: Mapping[int, Box], needed: Mapping[int, Box], grid: SliceGrid
) -> dict[int, Rectangle]:
    """Squares (in mm, as far as the slice has room) around an organ, by slice number.

    The square follows the automatic box as long as what is needed lies well within, so that an
    edit seldom asks for another picture. It is at least half as long as in the slice where the
    organ is largest: so much context tells what the organ is.

    Args:
        automatic: boxes before any edit; may lack slices, or be empty.
        needed: what has to be in the picture, by slice number.
    """
    longest = max((longer_mm(box, grid) for box in (automatic or needed).values()), default=0.0)
    found = {}
    for n, box in needed.items():
        usual = automatic.get(n, box)
        found[n] = _square(usual, longest / 2, grid)
        if not _has_room(found[n], box, grid):
            found[n] = _square(around([usual, box]), longest / 2, grid)
    return found


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box around some."""
    edges = np.array([box.edges for box in boxes])
    return Box(*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0))


def longer_mm(box: Box, grid: SliceGrid) -> float:
    """Length of a box's longer side."""
    row_mm, column_mm = grid.spacing
    return max(box.width * column_mm, box.height * row_mm)


def _square(box: Box, least_mm: float, grid: SliceGrid) -> Rectangle:
    """Around a box of at least that length, moved into the slice."""
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
    """True where a box keeps `ROOM` from those edges of its crop that are not the slice's."""
    rows, columns = grid.shape
    x0, y0, x1, y1 = crop
    across, down = ROOM * (x1 - x0), ROOM * (y1 - y0)
    return (
        box.x0 >= (x0 + across if x0 > 0 else 0)
        and box.y0 >= (y0 + down if y0 > 0 else 0)
        and box.x1 <= (x1 - across if x1 < columns else columns)
        and box.y1 <= (y1 - down if y1 < rows else rows)
    )
