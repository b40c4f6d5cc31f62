# SPDX-License-Identifier: Apache-2.0
"""Labels of a scan's voxels, decided from a network's probabilities on a coarser grid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .blocks import Block, block_around, block_within
from .geometry import Geometry
from .label_probabilities import PLAUSIBLE, LabelProbabilities

SEPARATION = 10.0
"""mm between the slices that are listed first: neighbours show the same uncertain rim."""

SLAB = 8
"""Slices of the scan decided at a time."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Labels of a scan and how sure they are; see `inference.Segmentation` for the attributes."""

    labels: np.ndarray
    probabilities: LabelProbabilities
    least_certain: dict[int, list[tuple[int, float]]]


def decide(
    probabilities: torch.Tensor,
    weight: torch.Tensor,
    coarse: Geometry,
    scan: Geometry,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Decision:
    """Interpolate probabilities linearly onto a scan's grid and take the likeliest label.

    In each slab of slices, a label is interpolated only within the box where it can win or is
    plausible there, and background only where there is such a box, so that the cost goes with what
    the organs occupy.

    Args:
        probabilities: (classes, K, J, I) float32 on `coarse`, background first.
        weight: (K, J, I), what each voxel of `coarse` counts for.
        progress: called with the fraction that is done.
    """
    classes, slices = len(probabilities), scan.size[2]
    labels = np.zeros(scan.shape, np.min_scalar_type(classes - 1))
    rims = _Rims(classes, scan)
    known = LabelProbabilities.of(probabilities, weight, coarse, scan)
    for k in range(0, slices, SLAB):
        progress(k / slices)
        boxes = known.boxes_in(slice(k, min(k + SLAB, slices)))
        if not boxes:
            continue
        region = block_around(list(boxes.values()))
        best = known.interpolate(0, region)
        # torch has few functions of uint16.
        winner = torch.zeros_like(best, dtype=torch.uint8 if classes <= 256 else torch.int32)
        for label, part in boxes.items():
            chance = known.interpolate(label, part)
            here = block_within(part, region)
            winner[here].masked_fill_(chance > best[here], label)
            torch.maximum(best[here], chance, out=best[here])
            rims.add(label, part, chance)
        labels[region] = winner.cpu().numpy()
    return Decision(labels, known.on_cpu(), rims.least_certain())


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
        plausible = chance.where(chance >= PLAUSIBLE, 0)
        wrong = plausible.minimum(1 - plausible)
        self._expected[label, slices] += plausible.sum(self._others).cpu().numpy()
        self._wrong[label, slices] += wrong.sum(self._others).cpu().numpy()

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
    ranked = [(int(there[n]), float(uncertainty[n])) for n in order]
    first: list[tuple[int, float]] = []
    for one in ranked:
        if all(abs(one[0] - k) * spacing >= SEPARATION for k, _ in first):
            first.append(one)
    return [*first, *(one for one in ranked if one not in first)]
