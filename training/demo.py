# SPDX-License-Identifier: Apache-2.0
"""The demonstration: train on phantom CT, segment phantom MR, and show what SRC and SM bring."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .pictures import COLOURS, draw_slice, save


class Panel(NamedTuple):
    """One slice to show: image and labels (J, I) in patient axes (I to the right, J anterior)."""

    title: str
    image: np.ndarray
    labels: np.ndarray
    aspect: float = 1.0  # J spacing over I spacing


def overview(path: Path, rows: Sequence[Sequence[Panel]], organs: Sequence[str]) -> None:
    """Draw one PNG: a row per case, a panel per look at it, organs in one set of colours.

    Args:
        rows: the same number of panels each, e.g. source CT with its labels, target MR with the
            truth, then the target with the prediction of each variant.
        organs: names of the labels 1, 2, ... for the legend.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(2.9 * columns, 2.7 * len(rows) + 0.4))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, panels, strict=True):
            draw_slice(axes, panel.image, panel.labels, panel.title, panel.aspect)
    patches = [
        Patch(color=COLOURS[n % len(COLOURS)], label=organ) for n, organ in enumerate(organs)
    ]
    figure.legend(handles=patches, loc="lower center", ncols=len(organs), frameon=False)
    save(figure, path)
