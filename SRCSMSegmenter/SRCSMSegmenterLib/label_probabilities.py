# SPDX-License-Identifier: Apache-2.0
"""Probabilities of labels, kept on a network's coarse grid and interpolated on demand.

An organ fills a small part of a scan. Its probability is kept, and interpolated, only within the
box in which it is plausible, so that memory and time go with what the organs occupy and not with
labels times voxels.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from .blocks import Block, ProbabilityBlock, whole_block
from .geometry import Geometry
from .resampling import index_map, resample
from .runs import Runs

SLAB = 16
"""Planes that are interpolated at a time."""

PLAUSIBLE = 0.1
"""Probability from which a voxel may be the label's; counted in `Segmentation.least_certain`."""


@dataclass(frozen=True, eq=False)
class LabelProbabilities:
    """The probabilities of a segmentation's labels; each is interpolated on demand.

    Attributes:
        shape: (K, J, I) of the scan.
        classes: labels, background included.
        boxes: in which each label can win or is plausible; none for other labels.
        mirrored: the scan is stored mirrored along K.
    """

    shape: tuple[int, int, int]
    classes: int
    boxes: dict[int, Block]
    mirrored: bool
    _crops: dict[int, "_Crop"]
    _left_out: Mapping[int, Runs]

    @classmethod
    def of(
        cls, probabilities: torch.Tensor, weight: torch.Tensor, coarse: Geometry, scan: Geometry
    ) -> "LabelProbabilities":
        """Keep the part of probabilities that a scan needs.

        Args:
            probabilities: (classes, K, J, I) float32 on `coarse`, background first.
            weight: (K, J, I), what each voxel of `coarse` counts for.
        """
        to_coarse, whole = index_map(scan, coarse), whole_block(scan.shape)
        weighing = None if bool((weight == 1).all()) else weight
        boxes: dict[int, Block] = {}
        crops = {0: _Crop.of(probabilities[0], weighing, None, to_coarse, whole)}
        for label in range(1, len(probabilities)):
            likely = _likely(probabilities[label], probabilities[0], len(probabilities))
            box = box_around(likely, to_coarse, whole)
            if box is not None:
                boxes[label] = box
                crops[label] = _Crop.of(probabilities[label], weighing, likely, to_coarse, box)
        return cls(scan.shape, len(probabilities), boxes, False, crops, {})

    def block(self, label: int) -> ProbabilityBlock:
        """Interpolate a label where it is plausible; it is 0 where it was left out (`without`)."""
        box = self.boxes.get(label)
        if box is None:
            return ProbabilityBlock((0, 0, 0), np.zeros((0, 0, 0), np.float16))
        values = self.within(label, box)
        if label in self._left_out:
            seen = values[::-1] if self.mirrored else values
            self._left_out[label].fill(seen, self._unmirrored(box), 0)
        return ProbabilityBlock(tuple(part.start for part in box), values)

    def whole(self, label: int) -> np.ndarray:
        """Return a label's probability on the whole scan, float16 (K, J, I)."""
        return self.block(label).whole(self.shape)

    def within(self, label: int, part: Block) -> np.ndarray:
        """Return a label's probability in a part of the scan, float16 (k, j, i).

        The part lies within the label's box; background is 0 and its box the scan.
        """
        planes, *rest = self._unmirrored(part)
        values = np.empty([axis.stop - axis.start for axis in (planes, *rest)], np.float16)
        for k in range(planes.start, planes.stop, SLAB):
            some = slice(k, min(k + SLAB, planes.stop))
            chance = self.interpolate(label, (some, *rest))
            values[k - planes.start : some.stop - planes.start] = chance.half().cpu().numpy()
        return values[::-1] if self.mirrored else values

    def interpolate(self, label: int, part: Block) -> torch.Tensor:
        """Interpolate a label on a part of the scan as the network sees it: (k, j, i) float32."""
        return self._crops[label].interpolate(part)

    def boxes_in(self, planes: slice) -> dict[int, Block]:
        """Find the box in which each label can win or is plausible in some planes.

        Args:
            planes: of the scan as the network sees it.

        Returns:
            Label -> slices (K, J, I) within the label's box; labels without a box are left out.
        """
        found = {}
        for label, (own, rows, columns) in self.boxes.items():
            start, stop = max(own.start, planes.start), min(own.stop, planes.stop)
            if start < stop:
                found[label] = self._crops[label].box((slice(start, stop), rows, columns))
        return {label: box for label, box in found.items() if box is not None}

    def confidence(self, labels: np.ndarray) -> np.ndarray:
        """Compute the probability of each voxel's label, float16 (K, J, I).

        It is one minus the likeliest label's where that was relabelled as background, and 0 beyond
        what the network has seen.

        Args:
            labels: (K, J, I), each 0 or the likeliest label.
        """
        confidence = np.empty(self.shape, np.float16)
        for k in range(0, self.shape[0], SLAB):
            planes, *others = whole_block(self.shape)
            slab = slice(k, min(k + SLAB, planes.stop))
            best, seen = self.within(0, (slab, *others)), labels[slab]
            other = np.zeros_like(best)
            for label, (own, rows, columns) in self.boxes.items():
                start, stop = max(own.start, slab.start), min(own.stop, slab.stop)
                if start < stop:
                    here = (slice(start - k, stop - k), rows, columns)
                    chance = self.within(label, (slice(start, stop), rows, columns))
                    np.copyto(best[here], chance, where=seen[here] == label)
                    np.maximum(other[here], chance, out=other[here])
            np.copyto(best, 1 - other, where=(seen == 0) & (other > best))
            confidence[slab] = best
        return confidence

    def means(self, labels: np.ndarray) -> dict[int, float]:
        """Compute the mean probability of each label over its voxels.

        Args:
            labels: (K, J, I).

        Returns:
            By label; those without any voxel are left out.
        """
        means = {}
        for label, box in self.boxes.items():
            count, total = 0, 0.0
            for k in range(box[0].start, box[0].stop, SLAB):
                part = (slice(k, min(k + SLAB, box[0].stop)), *box[1:])
                mask = labels[part] == label
                if mask.any():
                    count += int(mask.sum())
                    total += float(self.within(label, part)[mask].sum(dtype=np.float64))
            if count:
                means[label] = total / count
        return means

    def without(self, left_out: Mapping[int, Runs]) -> "LabelProbabilities":
        """Set labels' probabilities to 0 where they were relabelled as background.

        Args:
            left_out: see `organ_positions.Kept`, of the scan as the network sees it.
        """
        return replace(self, _left_out=left_out)

    def on_cpu(self) -> "LabelProbabilities":
        """Move the probabilities to the CPU."""
        return replace(self, _crops={label: crop.on_cpu() for label, crop in self._crops.items()})

    def mirror(self) -> "LabelProbabilities":
        """Return the probabilities on the same scan, stored mirrored along K."""
        last = self.shape[0]
        boxes = {
            label: (slice(last - planes.stop, last - planes.start), rows, columns)
            for label, (planes, rows, columns) in self.boxes.items()
        }
        return replace(self, boxes=boxes, mirrored=not self.mirrored)

    def _unmirrored(self, part: Block) -> Block:
        if not self.mirrored:
            return part
        planes, rows, columns = part
        last = self.shape[0]
        return slice(last - planes.stop, last - planes.start), rows, columns


def _likely(chance: torch.Tensor, background: torch.Tensor, classes: int) -> np.ndarray:
    """Find the coarse voxels around which a label can win or is plausible.

    An interpolated probability is at most the largest of the eight around it. So a label wins only
    where one of these is an equal share or more, and one is not below that of background.

    Args:
        chance, background: probabilities, (K, J, I) float32.

    Returns:
        bool (K, J, I).
    """
    likely = (chance >= min(PLAUSIBLE, 1 / classes)).cpu().numpy()
    if classes * PLAUSIBLE <= 1 or not likely.any():
        return likely
    part = _around(likely)
    plausible = (chance[part] >= PLAUSIBLE).cpu().numpy()
    ahead = (chance[part] >= background[part]).cpu().numpy()
    likely[part] &= plausible | _with_neighbours(ahead)
    return likely


def _around(mask: np.ndarray) -> Block:
    """Return the box of a mask (K, J, I) that is not empty, and of the voxels around it."""
    along = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(max(0, int(found[0]) - 1), int(found[-1]) + 2) for found in along)


def _with_neighbours(mask: np.ndarray) -> np.ndarray:
    """Mark voxels (K, J, I) and the 26 around each."""
    for axis in range(3):
        before = np.moveaxis(mask, axis, 0)
        grown = before.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        mask = np.moveaxis(grown, 0, axis)
    return mask


def box_around(likely: np.ndarray, to_coarse: np.ndarray, part: Block) -> Block | None:
    """Find the box of a part of a scan to which likely voxels of a coarse grid contribute.

    Args:
        likely: bool (K, J, I) on the coarse grid.
        to_coarse: 4x4 from the scan's voxels (i, j, k) to the coarse grid's.

    Returns:
        Slices (K, J, I) within `part`; None if there is no such voxel.
    """
    ends, size = np.array([(axis.start, axis.stop - 1) for axis in part[::-1]]), likely.shape[::-1]
    places = _corners(ends, to_coarse)
    low = np.clip(np.floor(places.min(0)), 0, np.array(size) - 1).astype(int)
    high = np.clip(np.ceil(places.max(0)) + 1, low + 1, size).astype(int)
    touched = likely[tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))]
    along = [np.flatnonzero(touched.any(axis=others)) for others in ((0, 1), (0, 2), (1, 2))]
    if not along[0].size:
        return None
    # Beyond the middles of the coarse grid's outer voxels its border counts.
    reach = np.array(
        [
            (max(first + found[0] - 1, -0.5), min(first + found[-1] + 1, length - 0.5))
            for first, found, length in zip(low, along, size, strict=True)
        ]
    )
    corners = _corners(reach, np.linalg.inv(to_coarse))
    low = np.maximum(np.floor(corners.min(0)), ends[:, 0]).astype(int)
    high = np.minimum(np.ceil(corners.max(0)), ends[:, 1]).astype(int) + 1
    if (low >= high).any():
        return None
    return tuple(slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))


def _corners(ends: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map the eight corners of a box, given by (3, 2) ends, by a 4x4: (8, 3)."""
    return np.array(list(itertools.product(*ends))) @ matrix[:3, :3].T + matrix[:3, 3]


@dataclass(frozen=True, eq=False)
class _Crop:
    """The part of a coarse probability map that a box of the scan touches.

    Attributes:
        weighted: (K, J, I) float32 probability times weight.
        weight: (K, J, I) float32; None if all weights are 1.
        likely: (K, J, I) bool, on the CPU: the label can win or is plausible; None for background.
        to_crop: 4x4 from the scan's voxels (i, j, k) to the crop's.
    """

    weighted: torch.Tensor
    weight: torch.Tensor | None
    likely: np.ndarray | None
    to_crop: np.ndarray

    @classmethod
    def of(
        cls,
        probability: torch.Tensor,
        weight: torch.Tensor | None,
        likely: np.ndarray | None,
        to_coarse: np.ndarray,
        box: Block,
    ) -> "_Crop":
        """Copy the part of coarse maps, (K, J, I), that a box touches."""
        ends = np.array([(part.start, part.stop - 1) for part in reversed(box)])
        corners = _corners(ends, to_coarse)
        last = np.array(probability.shape[::-1]) - 1
        low = np.clip(np.floor(corners.min(0)) - 1, 0, last).astype(int)
        high = np.clip(np.ceil(corners.max(0)) + 1, low, last).astype(int)
        part = tuple(slice(a, b + 1) for a, b in zip(low[::-1], high[::-1], strict=True))
        to_crop = to_coarse.copy()
        to_crop[:3, 3] -= low
        likely = None if likely is None else likely[part].copy()
        if weight is None or bool((weight[part] == 1).all()):
            return cls(probability[part].clone(), None, likely, to_crop)
        return cls(probability[part] * weight[part], weight[part], likely, to_crop)

    def box(self, part: Block) -> Block | None:
        """Find the box of a part of the scan in which the label can win or is plausible."""
        return box_around(self.likely, self.to_crop, part)

    def interpolate(self, part: Block) -> torch.Tensor:
        """Interpolate on a part of the scan: (k, j, i) float32; 0 beyond the coarse grid."""
        matrix = self.to_crop.copy()
        matrix[:3, 3] += matrix[:3, :3] @ [axis.start for axis in reversed(part)]
        size = tuple(axis.stop - axis.start for axis in reversed(part))
        (chance,) = resample(self.weighted[None], matrix, size)
        if self.weight is None:
            return chance
        (weight,) = resample(self.weight[None], matrix, size, outside=1.0)
        return chance.div_(weight)

    def on_cpu(self) -> "_Crop":
        """Move to the CPU."""
        weight = None if self.weight is None else self.weight.cpu()
        return replace(self, weighted=self.weighted.cpu(), weight=weight)
