# SPDX-License-Identifier: Apache-2.0
"""Pictures of slices and of curves."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from SRCSMSegmenterLib.atomic import atomic_write

COLOURS = ("#e06c5a", "#f2c14e", "#4ea5d9", "#8e6bbf", "#5cb85c", "#d977b8", "#8c8c8c")


def draw_slice(
    axes: Axes, image: np.ndarray, labels: np.ndarray | None, title: str, aspect: float = 1.0
) -> None:
    """One slice with label contours, anterior up and the patient's right on the left.

    Args:
        image, labels: (J, I) of a grid in patient axes (I to the right, J to anterior).
        aspect: J spacing over I spacing.
    """
    image = image[:, ::-1]
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
    if labels is not None:
        for label in np.unique(labels[labels > 0]):
            colour = COLOURS[(int(label) - 1) % len(COLOURS)]
            mask = (labels == label)[:, ::-1]
            axes.contour(mask, levels=[0.5], colors=colour, linewidths=1)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def curve_picture(path: Path, rows: Sequence[dict], labels: Sequence[str]) -> None:
    """Loss, and validation Dice per label, over steps (rows of curve.csv)."""
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    left.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="black")
    left.set(xlabel="step", ylabel="loss (running mean)")
    validated = [row for row in rows if row["dice"] != ""]
    for label, colour in zip(labels, COLOURS * len(labels), strict=False):
        values = [row[f"dice_{label}"] for row in validated]
        right.plot([row["step"] for row in validated], values, "o-", color=colour, label=label)
    right.set(xlabel="step", ylabel="validation Dice", ylim=(0, 1))
    if validated:
        right.legend(fontsize=7)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a temporary name and rename it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, bbox_inches="tight")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
