# SPDX-License-Identifier: Apache-2.0
"""Labels of a scan's voxels, decided from a network's probabilities on a coarser grid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .blocks import Block, block_around, block_within
from .geometry import Geometry
from .label_probabilities import PLAUSIBLE, LabelProbabilities

SEPARATION = 10.0
"""mm between the slices that are listed first: neighbours show the same uncertain rim."""

SLAB = 16
"""Slices of the scan decided at a time."""

BELOW_PLAUSIBLE = float(np.nextafter(np.float32(PLAUSIBLE), np.float32(0)))
"""Largest float32 below `PLAUSIBLE`: torch's threshold keeps what is above it."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Labels of a scan and how sure they are; see `inference.Segmentation` for the attributes."""

    labels: np.ndarray
    probabilities: LabelProbabilities
    least_certain: dict[int, list[tuple[int, float]]]


def decide(
    probabilities: LabelProbabilities,
    scan: Geometry,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Decision:
    """Interpolate probabilities linearly onto a scan's grid and take the likeliest label.

    In each slab of slices, a label is interpolated only within the box where it can win or is
    plausible there, and background only where there is such a box, so that the cost goes with what
    the organs occupy.

    Args:
        probabilities: on `scan`.
        progress: called with the fraction that is done.
    """
    classes, slices = probabilities.classes, scan.size[2]
    labels = np.zeros(scan.shape, np.min_scalar_type(classes - 1))
    rims = _Rims(classes, scan)
    for k in range(0, slices, SLAB):
        progress(k / slices)
        boxes = probabilities.boxes_in(slice(k, min(k + SLAB, slices)))
        if not boxes:
            continue
        region = block_around(list(boxes.values()))
        best = probabilities.interpolate(0, region)
        # torch has few functions of uint16.
        winner = torch.zeros_like(best, dtype=torch.uint8 if classes <= 256 else torch.int32)
        for label, part in sorted(boxes.items()):
            chance = probabilities.interpolate(label, part)
            here = block_within(part, region)
            # Labels ascend, so the largest of those that were ahead in turn is the likeliest.
            ahead = (chance > best[here]).to(winner.dtype).mul_(label)
            torch.maximum(winner[here], ahead, out=winner[here])
            torch.maximum(best[here], chance, out=best[here])
            rims.add(label, part, chance)
        labels[region] = winner.cpu().numpy()
    return Decision(labels, probabilities.on_cpu(), rims.least_certain())


class _Rims:
    """Uncertain areas of labels in a scan's slices (`Geometry.slice_axis`), added by blocks."""

    def __init__(self, classes: int, scan: Geometry) -> None:
        axis = scan.slice_axis
        self._dimension = 2 - axis  # of arrays (K, J, I)
        self._others = tuple(n for n in range(3) if n != self._dimension)
        first, second = np.delete(scan.affine[:3, :3], axis, axis=1).T
        self._area, self._spacing = np.linalg.norm(np.cross(first, second)), scan.spacing[axis]
        self._wrong, self._expected = np.zeros((2, classes, scan.size[axis]))

    def add(self, label: int, block: Block, chance: torch.Tensor) -> None:
        """Add the probability of a label in a block."""
        slices = block[self._dimension]
        plausible = F.threshold(chance, BELOW_PLAUSIBLE, 0)
        expected = plausible.sum(self._others)
        # min(p, 1 - p) = p - 2 max(p - 1/2, 0), in a pass over the block instead of three.
        wrong = (expected - 2 * F.softshrink(plausible, 0.5).sum(self._others)).clamp(min=0)
        self._expected[label, slices] += expected.cpu().numpy()
        self._wrong[label, slices] += wrong.cpu().numpy()

    def least_certain(self) -> dict[int, list[tuple[int, float]]]:
        """Rank the slices of each label but background."""
        return {
            label: _ranked(
                self._wrong[label] * self._area, self._expected[label] * self._area, self._spacing
            )
            for label in range(1, len(self._wrong))
        }


def _ranked(wrong: np.ndarray, expected: np.ndarray, spacing: float) -> list[tuple[int, float]]:
    """Rank the slices of a label; see `inference.Segmentation.least_certain`.

    Args:
        wrong, expected: (slices,) areas in mm².
        spacing: of the slices in mm.
    """
    there = np.flatnonzero(expected)
    uncertainty = wrong[there] / np.sqrt(expected[there])
    order = np.argsort(-uncertainty, kind="stable")
    free = np.ones(len(there), bool)
    first, others = [], []
    for n in order:
        if free[n]:
            free &= np.abs(there - there[n]) * spacing >= SEPARATION
            first.append(n)
        else:
            others.append(n)
    return [(int(there[n]), float(uncertainty[n])) for n in (*first, *others)]
