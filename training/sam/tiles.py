# SPDX-License-Identifier: Apache-2.0
"""Training tiles for a SAM: squares of slices, the objects in them, and their boxes.

A tile is a square of a slice with a labelled object in it, at any zoom and in any of the eight
orientations that a file may store it in. Boxes have the errors of a coarse network's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from SAMRefineLib.boxes.boxes import SliceGrid
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import Geometry, GridSpec

from ..augment.spatial import FACTOR, AugmentationConfig, augmented_window, draw_spatial
from ..data.cases import PreparedCase
from ..engine.keys import COUNT, NOT_NEGATIVE, SHARE, Range, Settings, key


@dataclass(frozen=True)
class TileConfig(Settings):
    """Size, zoom and augmentation of tiles.

    Attributes:
        side: of a tile.
        margin: the tile's side over the longer side of its object, drawn evenly on a log scale.
        pixel: the smallest pixel, however small the object; 0: any.
        whole_slices: share of the batches that show slices, at about their own resolution in
            tiles of twice the side or, as many, at twice that in tiles of four times the side;
            the number of the tiles falls as their area grows.
        smallest: area of the smallest piece of an object that is a prompt.
        rotation, tilt: largest angle in the slice and out of it.
        axis_scale: further factor per axis around 1.
        elastic: displacement of the control points of a cubic B-spline over the tile's side.
        shift, contrast: added to the normalised intensities, and factor on them around 1.
    """

    side: int = key(128, COUNT, unit="pixels")
    margin: tuple[float, float] = key((1.1, 4.0), Range(least=1))
    pixel: float = key(0.4, NOT_NEGATIVE, unit="mm")
    whole_slices: float = key(0.1, SHARE)
    smallest: int = key(24, COUNT, unit="pixels")
    rotation: float = key(0.35, NOT_NEGATIVE, unit="rad")
    tilt: float = key(0.05, NOT_NEGATIVE, unit="rad")
    axis_scale: float = key(0.1, FACTOR)
    elastic: float = key(0.04, NOT_NEGATIVE)
    shift: float = key(0.2, NOT_NEGATIVE)
    contrast: float = key(0.3, FACTOR)

    section: ClassVar[str] = "tiles."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin[0] > self.margin[1]:
            raise ConfigError(f"tiles.margin is two factors from 1 on, not {self.margin}.")


@dataclass(frozen=True)
class BoxConfig(Settings):
    """Errors of the boxes, in shares of the object's longer side.

    Attributes:
        exact: share of the boxes that do not differ.
        jitter: largest distance by which an edge moves outwards, in half of the others.
        error: standard deviation of an edge that moves either way, in the rest.
    """

    exact: float = key(0.3, SHARE)
    jitter: float = key(0.15, NOT_NEGATIVE, paper="9 of 512 pixels")
    error: float = key(0.06, NOT_NEGATIVE)

    section: ClassVar[str] = "boxes."


@dataclass(frozen=True, eq=False)
class Tiles:
    """A batch of tiles and of prompts for objects in them.

    Attributes:
        images: (N, 1, side, side) float32.
        labels: (N, side, side) int64.
        owner, value: (P,) int64, the tile and the label of each prompt; tiles ascend.
        boxes: (P, 4) float32, edges x0, y0, x1, y1 in pixels: pixel n reaches from n to n + 1.
    """

    images: torch.Tensor
    labels: torch.Tensor
    owner: torch.Tensor
    value: torch.Tensor
    boxes: torch.Tensor

    @property
    def masks(self) -> torch.Tensor:
        """The object of each prompt, (P, side, side) bool."""
        return self.labels[self.owner] == self.value[:, None, None]


def draw_tiles(
    cases: Sequence[PreparedCase],
    tiles: TileConfig,
    boxes: BoxConfig,
    count: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> Tiles:
    """Draw an augmented batch, before random convolution.

    Args:
        cases: intensities normalised as the SAM wants them.
        count: tiles of the usual size.
        generator: on the CPU.
    """
    kind = _uniform(generator) / max(tiles.whole_slices, 1e-9)
    factor = 2 if kind < 0.5 else 4 if kind < 1 else 1
    side, count = factor * tiles.side, max(1, count // factor**2)
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    while len(drawn) < count or not any(_shows_object(labels, tiles) for _, labels in drawn):
        del drawn[count - 1 :]  # none shows one: the last is drawn anew
        case = cases[int(_uniform(generator) * len(cases))]
        window = _draw_window(case, tiles, factor, generator)
        spatial = AugmentationConfig(
            translation=0.0,
            rotation=(tiles.tilt, tiles.tilt, tiles.rotation),
            scale=0.0,
            axis_scale=tiles.axis_scale,
            elastic=tiles.elastic * float(window.spacing[0]) * side,
        )
        draw = draw_spatial(spatial, generator)
        volumes = (case.image, case.labels, case.geometry)
        image, labels = augmented_window(*volumes, window, draw, case.outside, device)
        drawn.append((image[:, 0], labels[0]))
    images, labels = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    owner, value = prompts_of(labels, tiles.smallest)
    tight = tight_boxes(labels[owner] == value[:, None, None])
    return Tiles(
        _augmented_intensities(images, tiles, generator),
        labels,
        owner,
        value,
        disturbed_boxes(tight, boxes, side, generator),
    )


def object_in_slice(case: PreparedCase, voxel: np.ndarray) -> tuple[np.ndarray, float]:
    """Find the middle (RAS mm) and the longer side (mm) of a labelled voxel's object.

    The object is what has the voxel's label in its slice.

    Args:
        voxel: (i, j, k).
    """
    grid = SliceGrid(case.geometry, case.geometry.slice_axis)
    labels = grid.slice_of(case.labels[0].numpy(), int(voxel[grid.axis]))
    value = int(case.labels[0][tuple(voxel[::-1])])
    mask = torch.from_numpy(np.ascontiguousarray(labels == value))
    x0, y0, x1, y1 = tight_boxes(mask[None])[0].tolist()
    middle = np.array(voxel, dtype=np.float64)
    middle[grid.column_axis] = (x0 + x1 - 1) / 2
    middle[grid.row_axis] = (y0 + y1 - 1) / 2
    rows, columns = grid.spacing
    return case.geometry.to_ras(middle), max((x1 - x0) * columns, (y1 - y0) * rows)


def place_tile(
    geometry: Geometry,
    middle: np.ndarray,
    tile_mm: float,
    side: int,
    mirrored: tuple[bool, bool] = (False, False),
    exchanged: bool = False,
) -> Geometry:
    """Lay a square into a slice of a scan: a grid with I along the columns, J along the rows.

    Args:
        geometry: of the scan, sliced across its acquisition axis.
        middle: of the tile, RAS mm.
        tile_mm: length of its sides.
        side: pixels along its sides.
        mirrored: columns, rows.
        exchanged: rows for columns, after that.
    """
    grid = SliceGrid(geometry, geometry.slice_axis)
    axes = geometry.direction[:, [grid.column_axis, grid.row_axis, grid.axis]]
    axes = axes * [-1 if mirrored[0] else 1, -1 if mirrored[1] else 1, 1]
    if exchanged:
        axes = axes[:, [1, 0, 2]]
    pixel = tile_mm / side
    return GridSpec((side, side, 1), (pixel, pixel, 1.0)).placed(middle, axes)


def prompts_of(labels: torch.Tensor, smallest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find every object of at least `smallest` pixels in labels (N, side, side).

    Returns:
        (P,) int64 the tile of each, and (P,) int64 its label; tiles ascend.
    """
    areas = torch.nn.functional.one_hot(labels.flatten(1)).sum(1)
    areas[:, 0] = 0
    owner, value = torch.nonzero(areas >= smallest, as_tuple=True)
    return owner, value


def tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Find the edges x0, y0, x1, y1, (P, 4), of masks (P, rows, columns), none of them empty."""
    ends = []
    for across in (1, 2):
        hit = masks.any(across).byte()
        ends.append((hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 1).float()


def disturbed_boxes(
    boxes: torch.Tensor, config: BoxConfig, side: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw errors of a coarse network for boxes (P, 4), within a tile of `side` pixels."""
    shape = len(boxes), 4
    kind = torch.rand(shape[0], 1, generator=generator)
    jitter = config.jitter * torch.rand(shape, generator=generator)
    error = config.error * torch.randn(shape, generator=generator)
    outwards = torch.where(kind < (1 + config.exact) / 2, jitter, error)
    outwards = torch.where(kind < config.exact, 0.0, outwards).to(boxes.device)
    sizes = boxes[:, 2:] - boxes[:, :2]
    outwards = outwards * sizes.amax(1, keepdim=True)
    # An edge stays clear of the middle, so that a box remains one.
    outwards = outwards.maximum(sizes.repeat(1, 2) / -3)
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=boxes.device)
    return (boxes + signs * outwards).clamp(0, side)


def _draw_window(
    case: PreparedCase, tiles: TileConfig, factor: int, generator: torch.Generator
) -> Geometry:
    """Place a tile around an object of the case."""
    label, voxel, zoom, x, y, *flips = torch.rand(
        8, generator=generator, dtype=torch.float64
    ).tolist()
    voxels = case.foreground[int(label * len(case.foreground))]
    middle, extent = object_in_slice(case, voxels[int(voxel * len(voxels))])
    grid = SliceGrid(case.geometry, case.geometry.slice_axis)
    side = factor * tiles.side
    if factor == 1:
        low, high = map(math.log, tiles.margin)
        tile_mm = max(extent * math.exp(low + (high - low) * zoom), tiles.pixel * side)
    else:
        tile_mm = 2 * tiles.side * min(grid.spacing) * (0.8 + 0.4 * zoom)
        tile_mm = max(tile_mm, tiles.margin[0] * extent)
    widest = max(n * mm for n, mm in zip(grid.shape, grid.spacing, strict=True))
    tile_mm = min(tile_mm, max(widest, extent))
    # It lies anywhere in the tile.
    in_plane = case.geometry.direction[:, [grid.column_axis, grid.row_axis]]
    middle = middle + in_plane @ (np.array([x - 0.5, y - 0.5]) * (tile_mm - extent))
    mirror_x, mirror_y, exchanged = (flip < 0.5 for flip in flips)
    return place_tile(case.geometry, middle, tile_mm, side, (mirror_x, mirror_y), exchanged)


def _shows_object(labels: torch.Tensor, tiles: TileConfig) -> bool:
    """Tell whether a tile's labels (side, side) have an object to prompt for."""
    return len(prompts_of(labels[None], tiles.smallest)[0]) > 0


def _augmented_intensities(
    images: torch.Tensor, tiles: TileConfig, generator: torch.Generator
) -> torch.Tensor:
    draws = (torch.rand(2, len(images), 1, 1, 1, generator=generator) * 2 - 1).to(images.device)
    return (images * (1 + tiles.contrast * draws[0]) + tiles.shift * draws[1]).clamp(-1, 1)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))
