# SPDX-License-Identifier: Apache-2.0
"""Pictures: slices with outlines, and curves of a training. Each file is written in one go."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from SRCSMSegmenterLib.atomic import atomic_write

COLOURS = ("#e06c5a", "#f2c14e", "#4ea5d9", "#8e6bbf", "#5cb85c", "#d977b8", "#8c8c8c")
"""Colours of the labels 1, 2, ..., and again from the start."""


def outline_colour(label: int) -> str:
    """Return the colour of a label, 1 or more."""
    return COLOURS[(int(label) - 1) % len(COLOURS)]


def draw_outlined(
    axes: Axes,
    image: np.ndarray,
    label_maps: Mapping[str, np.ndarray],
    *,
    aspect: float = 1.0,
    limits: tuple[float, float] | None = None,
    width: float = 1.0,
) -> None:
    """Draw an image in grey with the outlines of labels, without axes.

    Args:
        image: (rows, columns) as shown: the first row on top, the first column on the left.
        label_maps: line style -> labels of the image's shape, 0 for background.
        aspect: height of a pixel over its width.
        limits: intensities shown black and white (default: the 1st and the 99th percentile).
        width: of the outlines, points.
    """
    low, high = np.percentile(image, (1, 99)) if limits is None else limits
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect)
    for style, labels in label_maps.items():
        for label in np.unique(labels[labels > 0]):
            mask = labels == label
            if not mask.all():
                colour = outline_colour(label)
                axes.contour(mask, [0.5], colors=colour, linestyles=style, linewidths=width)
    axes.set_axis_off()


def draw_slice(
    axes: Axes, image: np.ndarray, labels: np.ndarray | None, title: str, aspect: float = 1.0
) -> None:
    """Draw a slice with the outlines of its labels, anterior up and right on the left.

    Args:
        image, labels: (J, I) of a grid in patient axes (I to the right, J to anterior).
        aspect: J spacing over I spacing.
    """
    label_maps = {} if labels is None else {"solid": labels[::-1, ::-1]}
    draw_outlined(axes, image[::-1, ::-1], label_maps, aspect=aspect)
    axes.set_title(title, fontsize=8)


def curve_picture(path: Path, rows: Sequence[dict], labels: Sequence[str]) -> None:
    """Draw the loss, its parts and the validation Dice per label over the steps (curve.csv)."""
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    names = [key for key in rows[-1] if key.startswith("loss")]
    for name, colour in zip(names, ("black", *COLOURS), strict=False):
        some = [row for row in rows if name in row]
        values = [row[name] for row in some]
        left.plot([row["step"] for row in some], values, color=colour, label=name)
    left.set(xlabel="step", ylabel="loss (running mean)")
    if len(names) > 1:
        left.legend(fontsize=7)
    validated = [row for row in rows if row["dice"] != ""]
    for label, colour in zip(labels, COLOURS * len(labels), strict=False):
        values = [row[f"dice_{label}"] for row in validated]
        right.plot([row["step"] for row in validated], values, "o-", color=colour, label=label)
    right.set(xlabel="step", ylabel="validation Dice", ylim=(0, 1))
    if validated:
        right.legend(fontsize=7)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG in one go; its folder is created if it does not exist."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, bbox_inches="tight")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
