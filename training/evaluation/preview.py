# SPDX-License-Identifier: Apache-2.0
"""A picture of a segmentation at a glance: slices with outlines, and the organs in space."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import affine_transform, gaussian_filter

from SAMRefineLib.boxes.boxes import AXES, SliceGrid
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.terminology import Segment

from ..plots import draw_outlined, outline_colour, save

SLICES = 8
VIEWS = {"front": 0.0, "half from the left": 60.0}
"""Turns about the body's axis, degrees, by title."""

CELLS = 160
"""Cells along the longest side of the rendering's grid."""

BACKGROUND, AMBIENT = 1.0, 0.25

SMOOTHING = 1.5
"""Sigma of the Gaussian that rounds the steps of voxels, cells."""


def write_preview(
    path: Path, scan: Volume, labels: Volume, segments: Sequence[Segment], title: str
) -> None:
    """Draw slices through the organs and two renderings of them into a PNG.

    The slices are up to `SLICES`, evenly spread over those with an organ, as the scan was acquired.
    They are turned and mirrored if need be, so that right is on the left and anterior or superior
    on top.

    Args:
        scan: raw intensities, (K, J, I).
        labels: on the same grid.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(2, SLICES // 2 + 1)
    _draw_slices(panels[:, :-1].ravel(), scan, labels)
    for axes, (name, degrees) in zip(panels[:, -1], VIEWS.items(), strict=True):
        axes.imshow(render(labels, degrees))
        axes.set_title(name, fontsize=8)
    for axes in panels.flat:
        axes.set_axis_off()
    entries = [Patch(color=outline_colour(s.value), label=s.name) for s in segments]
    figure.legend(handles=entries, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(f"{title} (research use only, not for diagnosis)", fontsize=9)
    save(figure, path)


def render(labels: Volume, degrees: float) -> np.ndarray:
    """Render the surfaces of all labels as seen by somebody in front of the patient.

    Args:
        labels: (K, J, I).
        degrees: by which the viewer walks around the body's axis, to the patient's left.

    Returns:
        (rows, columns, 3) RGB, 0 to 1; superior on top.
    """
    cells = _turned(labels, degrees)
    depth = np.argmax(cells > 0, axis=1)  # the first cell that a ray from the front meets
    hit = (cells > 0).any(axis=1)
    front = np.take_along_axis(cells, depth[:, None], axis=1)[:, 0]
    # A surface is as bright as it faces the viewer; its slope is that of the depth, per cell.
    weight = gaussian_filter(hit.astype(float), SMOOTHING)
    smooth = gaussian_filter(np.where(hit, depth, 0.0), SMOOTHING) / np.maximum(weight, 1e-6)
    vertical, horizontal = np.gradient(np.where(hit, smooth, cells.shape[1]))
    shade = AMBIENT + (1 - AMBIENT) / np.sqrt(1 + vertical**2 + horizontal**2)
    picture = np.full((*hit.shape, 3), BACKGROUND)
    for label in np.unique(front[hit]):
        picture[hit & (front == label)] = to_rgb(outline_colour(int(label)))
    picture[hit] *= shade[hit][:, None]
    return picture[::-1]


def _draw_slices(panels: Sequence[Axes], scan: Volume, labels: Volume) -> None:
    """Draw slices with a label, evenly chosen; the middle one if there is none."""
    grid = SliceGrid(scan.geometry, scan.geometry.slice_axis)
    shown = np.flatnonzero(grid.stack(labels.array).any(axis=(1, 2)))
    if not shown.size:
        shown = np.array([scan.geometry.size[grid.axis] // 2])
    places = np.linspace(0, len(shown) - 1, min(len(panels), len(shown)))
    limits = tuple(np.percentile(scan.array, (1, 99)))
    rows, columns = grid.row_axis, grid.column_axis
    flips = tuple(slice(None, None, -1 if grid.increases(axis) else 1) for axis in (rows, columns))
    row_mm, column_mm = grid.spacing
    # Columns are counted along right-left, or else along anterior-posterior.
    leading = np.abs(scan.geometry.direction).argmax(axis=0)
    lying = leading[rows] < leading[columns]
    aspect = column_mm / row_mm if lying else row_mm / column_mm
    for axes, place in zip(panels, places, strict=False):
        k = int(shown[round(place)])
        image, found = (grid.slice_of(each.array, k)[flips] for each in (scan, labels))
        if lying:
            image, found = image.T, found.T
        draw_outlined(axes, image, {"solid": found}, aspect=aspect, limits=limits)
        axes.set_title(f"{AXES[grid.axis].lower()} = {k}", fontsize=8)


def _turned(labels: Volume, degrees: float) -> np.ndarray:
    """Sample the labels on cubes: (superior, away from the viewer, to the viewer's right)."""
    geometry = labels.geometry
    angle = np.radians(degrees)
    right = np.array([-np.cos(angle), -np.sin(angle), 0.0])  # of the viewer: the patient's left
    away = np.array([np.sin(angle), -np.cos(angle), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    axes = np.stack([up, away, right])
    corners = _corners(labels)
    places = corners @ axes.T
    low, high = places.min(axis=0), places.max(axis=0)
    spacing = float((high - low).max()) / CELLS
    shape = tuple(int(n) for n in np.ceil((high - low) / spacing) + 1)
    # Cell (a, b, c) -> RAS -> voxel (i, j, k) -> array index (k, j, i).
    to_ras = axes.T * spacing
    start = axes.T @ low
    matrix = (geometry.inverse[:3, :3] @ to_ras)[::-1]
    offset = geometry.to_ijk(start)[::-1]
    return affine_transform(labels.array, matrix, offset, output_shape=shape, order=0)


def _corners(labels: Volume) -> np.ndarray:
    """Return the corners of the box of voxels around all labels, (8, 3) RAS mm."""
    geometry = labels.geometry
    ends = []
    for axis in (2, 1, 0):
        others = tuple(a for a in range(3) if a != axis)
        there = np.flatnonzero(labels.array.any(axis=others))
        first, last = (there[0], there[-1]) if there.size else (0, labels.array.shape[axis] - 1)
        ends.append((first - 1, last + 1))
    ijk = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1).T
    return geometry.to_ras(ijk)
