# SPDX-License-Identifier: Apache-2.0
"""Mosaics: many slices on few canvases, so that one encoder pass serves them all (Wang et al.).

A canvas is a picture of the model's input size; a tile is the part of it that shows one slice, or
a rectangle cut from one. All coordinates are edge coordinates: pixel n covers n..n+1, x runs along
columns, y along rows. A tile's own coordinates count from its corner on the canvas.

Slices smaller than sixteen patches are worth scaling up: SAM decodes a mask of 4 x 4 pixels per
patch, and a tile of few patches shows it little. Larger ones keep their own pixels as long as they
fit on a canvas. The limits of `pack`, `at_least` and `at_most`, decide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

Rectangle = tuple[int, int, int, int]
"""x0, y0, x1, y1 on a slice, in whole pixels."""


@dataclass(frozen=True)
class Tile:
    """Position of a rectangle of a slice on a canvas.

    Attributes:
        canvas: index of the canvas.
        x, y: the tile's corner in canvas pixels.
        width, height: the tile's size in canvas pixels.
        source: the rectangle of the slice that it shows.
    """

    canvas: int
    x: int
    y: int
    width: int
    height: int
    source: Rectangle

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per slice pixel along x and y."""
        x0, y0, x1, y1 = self.source
        return self.width / (x1 - x0), self.height / (y1 - y0)

    def to_tile(self, xy: np.ndarray) -> np.ndarray:
        """Convert (..., 2) x and y in slice pixels to canvas pixels from the tile's corner."""
        return (np.asarray(xy) - self.source[:2]) * self.scale

    def patches(self, patch: int) -> tuple[slice, slice]:
        """Return the rows and columns of the canvas's embedding that cover the tile.

        Args:
            patch: side of a patch in canvas pixels.
        """
        rows = slice(self.y // patch, -(-(self.y + self.height) // patch))
        columns = slice(self.x // patch, -(-(self.x + self.width) // patch))
        return rows, columns


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Slices laid out on canvases, which are drawn on demand.

    Attributes:
        slices: (rows, columns) float32 each, ready for the encoder.
        tiles: one for each slice, in order.
        side: side of a canvas in pixels.
        fill: the value of pixels that show no slice.
    """

    slices: Sequence[np.ndarray]
    tiles: tuple[Tile, ...]
    side: int
    fill: float = 0.0

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """For each canvas the positions in `slices` of those on it."""
        members: list[list[int]] = [
            [] for _ in range(1 + max((t.canvas for t in self.tiles), default=-1))
        ]
        for number, tile in enumerate(self.tiles):
            members[tile.canvas].append(number)
        return tuple(map(tuple, members))

    def canvas(self, number: int) -> np.ndarray:
        """Draw a canvas, (side, side) float32."""
        drawn = np.full((self.side, self.side), self.fill, np.float32)
        for member in self.members[number]:
            tile = self.tiles[member]
            shown = _shown(self.slices[member], tile).numpy()
            drawn[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = shown
        return drawn


def pack(
    slices: Sequence[np.ndarray],
    *,
    side: int,
    step: int,
    at_least: int,
    at_most: int,
    sources: Sequence[Rectangle] | None = None,
    aspect: float = 1.0,
    fill: float = 0.0,
) -> Mosaic:
    """Lay slices, or rectangles of them, out on canvases by first fit.

    Args:
        slices: (rows, columns) float32 each, ready for the encoder, of any sizes. The same array
            may come several times, with other rectangles.
        side: side of a canvas in pixels, a multiple of `step`.
        step: tile corners lie on its multiples: the model's patch or, for an encoder whose
            attention stays within windows, its window.
        at_least, at_most: limits of a tile's longer side in pixels. In between a slice keeps its
            own pixels; equal limits give every tile that size.
        sources: the rectangle to show of each slice (default: all of it).
        aspect: a slice's row spacing over its column spacing; tiles have square pixels.
        fill: the value of pixels that show no slice.

    Returns:
        Tiles in the order of `slices`. Larger tiles are placed first, equal ones in order.
    """
    if not 1 <= at_least <= at_most <= side or side % step:
        raise ValueError(f"1 <= {at_least=} <= {at_most=} <= {side=}, a multiple of {step=}.")
    if sources is None:
        sources = [(0, 0, image.shape[1], image.shape[0]) for image in slices]
    sizes = [_tile_size(source, at_least, at_most, aspect) for source in sources]
    corners = place(sizes, side, step)
    tiles = (
        Tile(*corner, *size, source)
        for corner, size, source in zip(corners, sizes, sources, strict=True)
    )
    return Mosaic(slices, tuple(tiles), side, fill)


def place(sizes: Iterable[tuple[int, int]], side: int, step: int) -> list[tuple[int, int, int]]:
    """Pack rectangles without overlap, their corners on multiples of `step`.

    Larger rectangles are placed first, each into the first free place (by row, then column) of the
    first canvas that has one, on a map of cells of `step` x `step` pixels.

    Args:
        sizes: (width, height) in pixels, none over `side`.
        side: side of a canvas in pixels.
        step: side of a cell in pixels.

    Returns:
        (canvas, x, y) for each, in the order of `sizes`.
    """
    cells = [(-(-width // step), -(-height // step)) for width, height in sizes]
    taken: list[np.ndarray] = []
    full: dict[tuple[int, int], int] = {}  # canvases before this one have no place of that size
    corners = [(0, 0, 0)] * len(cells)
    for n in sorted(range(len(cells)), key=lambda n: (-max(cells[n]), -cells[n][0] * cells[n][1])):
        width, height = cells[n]
        canvas = full.get(cells[n], 0)
        while True:
            if canvas == len(taken):
                taken.append(np.zeros((side // step, side // step), bool))
            if (corner := _first_free(taken[canvas], width, height)) is not None:
                break
            canvas += 1
        full[cells[n]] = canvas
        y, x = corner
        taken[canvas][y : y + height, x : x + width] = True
        corners[n] = canvas, x * step, y * step
    return corners


def mask_from_tile(logits: torch.Tensor, tile: Tile, patch: int) -> torch.Tensor:
    """Interpolate logits of a tile at the pixels of its slice.

    Args:
        logits: (..., h, w), covering the patches of the tile (`Tile.patches`) evenly.
        tile: the tile.
        patch: side of a patch in canvas pixels.

    Returns:
        Logits (..., rows, columns) of the tile's source rectangle, interpolated linearly at the
        middle of each pixel.
    """
    x0, y0, x1, y1 = tile.source
    rows, columns = tile.patches(patch)
    along_y = _interpolation(
        y1 - y0, tile.height, patch * (rows.stop - rows.start), logits.shape[-2]
    )
    along_x = _interpolation(
        x1 - x0, tile.width, patch * (columns.stop - columns.start), logits.shape[-1]
    )
    return along_y.to(logits) @ logits @ along_x.to(logits).T


def mask_to_tile(probability: np.ndarray, tile: Tile, patch: int) -> torch.Tensor:
    """Resample a slice's mask to the pixels of SAM's masks for a tile; 0 outside the slice.

    Args:
        probability: (rows, columns) of the whole slice, or a bool mask.
        tile: the tile.
        patch: side of a patch in canvas pixels.

    Returns:
        (4 h, 4 w) float32 probabilities, h and w being the tile's patches.
    """
    rows, columns = tile.patches(patch)
    right = patch * (columns.stop - columns.start) - tile.width
    bottom = patch * (rows.stop - rows.start) - tile.height
    shown = F.pad(_shown(probability, tile), (0, right, 0, bottom))
    return F.avg_pool2d(shown[None], patch // 4)[0]


def _shown(image: np.ndarray, tile: Tile) -> torch.Tensor:
    """Resample the source rectangle of an image (rows, columns) to float32 (height, width)."""
    x0, y0, x1, y1 = tile.source
    part = torch.from_numpy(np.ascontiguousarray(image[y0:y1, x0:x1], np.float32))
    if part.shape == (tile.height, tile.width):
        return part
    return F.interpolate(
        part[None, None],
        (tile.height, tile.width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[0, 0]


def _tile_size(source: Rectangle, at_least: int, at_most: int, aspect: float) -> tuple[int, int]:
    """Return (width, height) of a tile: the finer spacing at its own scale, within the limits."""
    x0, y0, x1, y1 = source
    width, height = (x1 - x0) / min(1, aspect), (y1 - y0) * aspect / min(1, aspect)
    longer = max(width, height)
    scale = min(max(longer, at_least), at_most) / longer
    return max(1, round(width * scale)), max(1, round(height * scale))


def _first_free(taken: np.ndarray, width: int, height: int) -> tuple[int, int] | None:
    """Find (row, column) of the first place for width x height cells; None if there is none.

    Args:
        taken: bool (rows, columns) of cells.
    """
    summed = np.zeros(np.add(taken.shape, 1), np.int32)
    taken.cumsum(0, np.int32).cumsum(1, out=summed[1:, 1:])
    inside = (
        summed[height:, width:]
        - summed[:-height, width:]
        - summed[height:, :-width]
        + summed[:-height, :-width]
    )
    free = inside == 0
    first = int(free.argmax())
    return divmod(first, free.shape[1]) if free.flat[first] else None


def _interpolation(pixels: int, shown: int, covered: int, samples: int) -> torch.Tensor:
    """Return weights (pixels, samples) for linear interpolation at the middles of pixels.

    Args:
        pixels: number of pixels of the slice.
        shown: canvas pixels that show them.
        covered: canvas pixels that the samples cover evenly, from the same corner on.
        samples: number of samples.
    """
    middles = (torch.arange(pixels, dtype=torch.float64) + 0.5) * shown / pixels
    position = (middles * samples / covered - 0.5).clamp(0, samples - 1)
    below = position.long().clamp(max=max(0, samples - 2))
    weights = torch.zeros(pixels, samples, dtype=torch.float64)
    index = torch.arange(pixels)
    weights[index, below] = 1 - (position - below)
    weights[index, (below + 1).clamp(max=samples - 1)] += position - below
    return weights
