# SPDX-License-Identifier: Apache-2.0
"""Pictures of boxes and masks over the slices they belong to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from SAMRefineLib.boxes.boxes import AXES, Box, SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.refiner import OrganPrompt
from SRCSMSegmenterLib.geometry import Volume

from ..plots import save

BOX_COLOUR = "#f2c14e"
COARSE_COLOUR = "#4ea5d9"
REFINED_COLOUR = "#e06c5a"

COLUMNS = 4
MOST_SLICES = 12
MARGIN = 0.3
"""Shown around the organ, as a share of its longer side."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A mask to draw as a contour.

    Attributes:
        name: for the legend.
        mask: (K, J, I) bool.
        colour: of matplotlib.
    """

    name: str
    mask: np.ndarray
    colour: str


def box_pictures(
    start: Path, scan: Volume, frames: Sequence[KeyFrames], organs: Sequence[CoarseOrgan]
) -> list[Path]:
    """Draw each organ with boxes, and its coarse mask, in `start`_ORGAN.png; return the paths.

    Args:
        frames: boxes of each organ.
        organs: coarse masks of the same organs, in the same order.
    """
    paths = []
    for boxes, organ in zip(frames, organs, strict=True):
        if boxes.effective():
            coarse = Outline("coarse", organ.mask >= 0.5, COARSE_COLOUR)
            paths.append(_organ_picture(start, scan, boxes, [coarse]))
    return paths


def refinement_pictures(
    start: Path, scan: Volume, organs: Sequence[OrganPrompt], refined: Volume
) -> list[Path]:
    """Draw each organ with boxes, before and after, in `start`_ORGAN.png; return the paths.

    Args:
        refined: label map on the scan's grid.
    """
    paths = []
    for organ in organs:
        if organ.frames.effective():
            mask = refined.array == organ.frames.label
            outlines = [Outline("refined", mask, REFINED_COLOUR)]
            if organ.coarse is not None:
                outlines.insert(0, Outline("coarse", organ.coarse >= 0.5, COARSE_COLOUR))
            paths.append(_organ_picture(start, scan, organ.frames, outlines))
    return paths


def _organ_picture(
    start: Path, scan: Volume, frames: KeyFrames, outlines: Sequence[Outline]
) -> Path:
    plain = "".join(c if c.isalnum() else "_" for c in frames.name)
    path = start.with_name(f"{start.name}_{plain}.png")
    overlay_picture(path, scan.array, frames.grid, frames.name, frames.effective(), outlines)
    return path


def overlay_picture(
    path: Path,
    image: np.ndarray,
    grid: SliceGrid,
    title: str,
    boxes: Mapping[int, Box],
    outlines: Sequence[Outline],
) -> None:
    """Draw slices of an organ with its boxes and contours, cropped to the organ, as a PNG.

    The slices are up to `MOST_SLICES`, evenly chosen, of those with a box or a contour. Columns and
    rows run as the volume stores them, mirrored if needed so that right is on the left and
    anterior or superior on top.

    Args:
        image: (K, J, I) intensities.
        boxes: slice number -> box.
    """
    stacks = [(outline, grid.stack(outline.mask)) for outline in outlines]
    shown = set(boxes)
    for _, stack in stacks:
        shown |= set(np.flatnonzero(stack.any(axis=(1, 2))).tolist())
    chosen = _evenly(sorted(shown), MOST_SLICES)
    window = _window(boxes, [stack for _, stack in stacks], grid)
    low, high = np.percentile(image, (1, 99))
    row_mm, column_mm = grid.spacing
    rows = max(1, math.ceil(len(chosen) / COLUMNS))
    figure = Figure(figsize=(2.6 * COLUMNS, 2.6 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, n in zip(panels, chosen, strict=False):
        pixels = grid.slice_of(image, n)
        # In edge coordinates, as the boxes are.
        extent = (0, pixels.shape[1], pixels.shape[0], 0)
        axes.imshow(
            pixels, cmap="gray", vmin=low, vmax=high, extent=extent, aspect=row_mm / column_mm
        )
        for outline, stack in stacks:
            if stack[n].any():
                y, x = (np.arange(length) + 0.5 for length in stack[n].shape)
                axes.contour(x, y, stack[n], levels=[0.5], colors=outline.colour, linewidths=1)
        if n in boxes:
            box = boxes[n]
            axes.add_patch(
                Rectangle(
                    (box.x0, box.y0), box.width, box.height, fill=False, color=BOX_COLOUR, lw=1
                )
            )
        axes.set(xlim=(window.x0, window.x1), ylim=(window.y1, window.y0))
        if grid.increases(grid.column_axis):
            axes.invert_xaxis()
        if grid.increases(grid.row_axis):
            axes.invert_yaxis()
        axes.set_title(f"{AXES[grid.axis].lower()} = {n}", fontsize=8)
    lines = [("box", BOX_COLOUR), *((outline.name, outline.colour) for outline in outlines)]
    figure.legend(
        handles=[Line2D([], [], color=colour, label=name) for name, colour in lines],
        loc="outside lower center",
        ncol=len(lines),
        fontsize=8,
    )
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _evenly(numbers: list[int], most: int) -> list[int]:
    if len(numbers) <= most:
        return numbers
    return [numbers[round(n)] for n in np.linspace(0, len(numbers) - 1, most)]


def _window(boxes: Mapping[int, Box], stacks: Sequence[np.ndarray], grid: SliceGrid) -> Box:
    """Return the part of every slice to show: all boxes and masks, and a margin around them.

    Args:
        stacks: masks (slices, rows, columns).
    """
    edges = [box.edges for box in boxes.values()]
    for stack in stacks:
        flat = stack.any(axis=0)
        if flat.any():
            (y0, y1), (x0, x1) = (np.flatnonzero(flat.any(axis))[[0, -1]] for axis in (1, 0))
            edges.append((x0, y0, x1 + 1, y1 + 1))
    rows, columns = grid.shape
    if not edges:
        return Box(0, 0, columns, rows)
    low, high = np.min(edges, axis=0)[:2], np.max(edges, axis=0)[2:]
    row_mm, column_mm = grid.spacing
    spacing = np.array([column_mm, row_mm])
    margin = MARGIN * ((high - low) * spacing).max() / spacing
    return Box(*(low - margin), *(high + margin)).clipped(grid.shape)
