# SPDX-License-Identifier: Apache-2.0
"""The slice of a scan with most errors, and its picture."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from SRCSMSegmenterLib.geometry import Geometry, Volume

from ..plots import draw_outlined, outline_colour
from .scores import write


@dataclass(frozen=True, eq=False)
class SliceView:
    """One slice as it is shown: the first row is anterior or superior, the first column right.

    Attributes:
        image, prediction, truth: (rows, columns) intensities and labels; labels that are not in
            `labels` are 0.
        aspect: height of a voxel over its width.
        index: number of the slice along the scan's slice axis.
        labels: name -> label of the labels to outline.
    """

    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray
    aspect: float
    index: int
    labels: dict[str, int]


def most_wrong_slice(
    image: Volume, prediction: np.ndarray, truth: np.ndarray, labels: dict[str, int]
) -> SliceView:
    """Return the slice across the scan's slice axis with the most wrongly labelled voxels.

    Args:
        image: the scan.
        prediction, truth: (K, J, I) label maps on the scan's grid.
        labels: name -> label; other labels count as background.
    """
    geometry = image.geometry
    through = geometry.slice_axis
    column, row = sorted(
        (axis for axis in range(3) if axis != through),
        key=lambda axis: abs(geometry.direction[0, axis]),
        reverse=True,
    )
    scored = list(labels.values())
    prediction, truth = (a * np.isin(a, scored, kind="table") for a in (prediction, truth))
    wrong = (prediction != truth).sum(axis=(2 - column, 2 - row))
    index = int(np.argmax(wrong))
    return SliceView(
        *(
            _oriented(a, geometry, through, index, row, column)
            for a in (image.array, prediction, truth)
        ),
        aspect=float(geometry.spacing[row] / geometry.spacing[column]),
        index=index,
        labels=labels,
    )


def _oriented(
    array: np.ndarray, geometry: Geometry, through: int, index: int, row: int, column: int
) -> np.ndarray:
    """Return a slice as radiologists look at it: right on the left, anterior or superior on top.

    Args:
        array: (K, J, I).
        through, row, column: voxel axes across the slice, along its columns, and along its rows.
        index: number of the slice along `through`.
    """
    shown = array.transpose(2 - through, 2 - row, 2 - column)[index]
    right = geometry.direction[0, column]
    up = max(geometry.direction[1:, row], key=abs)
    return shown[:: -1 if up > 0 else 1, :: -1 if right > 0 else 1]


def draw_view(view: SliceView, title: str, path: Path) -> None:
    """Save a PNG of the slice with the truth outlined solid and the prediction dashed.

    Raises:
        EvaluationError: the file cannot be written.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    draw_outlined(
        axes, view.image, {"solid": view.truth, "dashed": view.prediction}, aspect=view.aspect
    )
    for name, label in view.labels.items():
        axes.plot([], [], color=outline_colour(label), label=name)
    axes.set_title(f"{title}\nslice {view.index}; truth solid, prediction dashed", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write(path, buffer.getvalue())
