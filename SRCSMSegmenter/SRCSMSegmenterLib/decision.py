# SPDX-License-Identifier: Apache-2.0
"""Labels of a scan's voxels, decided from a network's probabilities on a coarser grid."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .geometry import Geometry
from .resampling import index_map, resample

PLAUSIBLE = 0.1
"""Probability from which a voxel may be the label's; counted in `Decision.least_certain`."""

SLAB = 8
"""Slices of the scan decided at a time."""

VoxelBlock = tuple[slice, slice, slice]
"""A part of a scan, slices (K, J, I)."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Labels of a scan and how sure they are; see `inference.Segmentation` for the attributes."""

    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    least_certain: dict[int, list[tuple[int, float]]]


def decide(
    probabilities: torch.Tensor,
    weight: torch.Tensor,
    coarse: Geometry,
    scan: Geometry,
    keep: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Decision:
    """Interpolate probabilities linearly onto a scan's grid and take the likeliest label.

    Background is interpolated everywhere; a label only within the box where it can win or is
    plausible, so that more labels cost little.

    Args:
        probabilities: (classes, K, J, I) float32 on `coarse`, background first.
        weight: (K, J, I), what each voxel of `coarse` counts for.
        keep: return the probabilities on the scan's grid too.
        progress: called with the fraction that is done.
    """
    classes, slices = len(probabilities), scan.size[2]
    labels = np.empty(scan.shape, np.uint8)
    confidence = np.empty(scan.shape, np.float16)
    kept = np.zeros((classes, *scan.shape), np.float16) if keep else None
    wrong, expected = np.zeros((2, classes, slices))
    to_coarse = index_map(scan, coarse)
    boxes = label_boxes(probabilities, coarse, scan)
    interpolate = _Interpolation(probabilities * weight, weight, to_coarse)

    for k in range(0, slices, SLAB):
        progress(k / slices)
        slab = slice(k, min(k + SLAB, slices))
        best = interpolate(0, (slab, slice(0, scan.size[1]), slice(0, scan.size[0])))
        winner = torch.zeros_like(best, dtype=torch.uint8)
        if kept is not None:
            kept[0, slab] = best.half().cpu().numpy()
        for label, box in boxes.items():
            part = (slice(max(k, box[0].start), min(slab.stop, box[0].stop)), *box[1:])
            if part[0].start >= part[0].stop:
                continue
            chance = interpolate(label, part)
            here = (slice(part[0].start - k, part[0].stop - k), *box[1:])
            winner[here].masked_fill_(chance > best[here], label)
            torch.maximum(best[here], chance, out=best[here])
            if kept is not None:
                kept[label, *part] = chance.half().cpu().numpy()
            plausible = chance.where(chance >= PLAUSIBLE, 0)
            expected[label, part[0]] = plausible.sum((1, 2)).cpu().numpy()
            wrong[label, part[0]] = plausible.minimum(1 - plausible).sum((1, 2)).cpu().numpy()
        labels[slab] = winner.cpu().numpy()
        confidence[slab] = best.half().cpu().numpy()
    area = np.linalg.norm(np.cross(scan.affine[:3, 0], scan.affine[:3, 1]))
    least_certain = {
        label: _ranked(wrong[label] * area, expected[label] * area) for label in range(1, classes)
    }
    return Decision(labels, confidence, kept, least_certain)


def label_boxes(
    probabilities: torch.Tensor, coarse: Geometry, scan: Geometry
) -> dict[int, VoxelBlock]:
    """Find the box of the scan in which each label can win or is plausible.

    An interpolated probability is at most the largest of the eight around it, and a label wins
    with no less than an equal share.

    Args:
        probabilities: (classes, K, J, I) on `coarse`, background first.

    Returns:
        Label -> slices (K, J, I) of the scan; labels without a box are left out.
    """
    least = min(PLAUSIBLE, 1 / len(probabilities))
    boxes = {}
    for label, chances in enumerate(probabilities[1:], start=1):
        likely = chances >= least
        if not likely.any():
            continue
        along = [torch.nonzero(likely.any(b).any(a))[:, 0] for a, b in ((0, 1), (0, 2), (1, 2))]
        ends = [(int(found[0]) - 1, int(found[-1]) + 1) for found in along]
        # Beyond the coarse grid's middles its border counts.
        ends = [
            (low if low > -1 else -0.5, high if high < n else n - 0.5)
            for (low, high), n in zip(ends, coarse.size, strict=True)
        ]
        corners = scan.to_ijk(coarse.to_ras(np.array(list(itertools.product(*ends)))))
        low = np.floor(corners.min(0)).clip(0).astype(int)
        high = np.minimum(np.ceil(corners.max(0)) + 1, scan.size).astype(int)
        if (low < high).all():
            i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            boxes[label] = (k, j, i)
    return boxes


class _Interpolation:
    """Weighted interpolation of one label onto a part of the scan."""

    def __init__(self, weighted: torch.Tensor, weight: torch.Tensor, to_coarse: np.ndarray) -> None:
        self.weighted, self.weight, self.to_coarse = weighted, weight, to_coarse
        self.even = bool((weight == 1).all())

    def __call__(self, label: int, part: VoxelBlock) -> torch.Tensor:
        """Interpolate a label on a part of the scan: (K, J, I)."""
        matrix = self.to_coarse.copy()
        matrix[:3, 3] += matrix[:3, :3] @ [axis.start for axis in reversed(part)]
        size = tuple(axis.stop - axis.start for axis in reversed(part))
        (chance,) = resample(self.weighted[label : label + 1], matrix, size)
        if self.even:
            return chance
        (weight,) = resample(self.weight[None], matrix, size, outside=1.0)
        return chance / weight


def _ranked(wrong: np.ndarray, expected: np.ndarray) -> list[tuple[int, float]]:
    there = np.flatnonzero(expected)
    uncertainty = wrong[there] / np.sqrt(expected[there])
    order = np.argsort(-uncertainty, kind="stable")
    return [(int(there[n]), float(uncertainty[n])) for n in order]
