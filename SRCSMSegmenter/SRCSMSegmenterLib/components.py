# SPDX-License-Identifier: Apache-2.0
"""Connected components of label maps, and the overlap of masks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .blocks import Block

ConfidenceOf = Callable[[int, Block], np.ndarray]
"""From a label and a block of the scan to the label's probability there, (k, j, i)."""


SLAB = 16
"""Planes of a label's box whose confidence is looked at together."""


@dataclass(frozen=True, eq=False)
class LabelComponents:
    """The face-connected components of one label.

    Attributes:
        box: slices (K, J, I) of the label map that hold the label.
        numbers: integers, within the box: 1, 2, ... in the order of the array; 0 elsewhere.
        sizes: (components,) voxels of each, weighted by the network's confidence if that is given:
            a long scan may show a large piece that is hardly likelier than not.
        means: (components,) mean confidence of each; 1 if none is given.
    """

    label: int
    box: Block
    numbers: np.ndarray
    sizes: np.ndarray
    means: np.ndarray

    def without(self, component: int) -> np.ndarray:
        """Mark all components but one, counted from 0; bool, within the box."""
        return (self.numbers != 0) & (self.numbers != component + 1)


def components(
    labels: np.ndarray, confidence_of: ConfidenceOf | None = None
) -> Iterator[LabelComponents]:
    """Yield the components of every label that is there.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence_of: probabilities of the labels; a voxel weighs (2p - 1)², next to nothing if p
            is not above one half.
    """
    from scipy import ndimage  # when needed: Slicer loads this file at its start

    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        mask = labels[box] == label
        numbers, count = _numbered(mask)
        voxels, sizes, sums = np.zeros((3, count + 1))
        for part in _slabs(mask):
            inside = mask[part]
            found = numbers[part][inside]
            voxels += np.bincount(found, minlength=count + 1)
            if confidence_of is not None:
                values = confidence_of(label, _moved(part, box))[inside]
                sizes += np.bincount(found, _weights(values), count + 1)
                sums += np.bincount(found, values, count + 1)
        voxels, sizes, sums = voxels[1:], sizes[1:], sums[1:]
        if confidence_of is None:
            sizes, sums = voxels, voxels
        yield LabelComponents(label, box, numbers, sizes, sums / voxels)


def smaller_components(labels: np.ndarray, confidence: np.ndarray | None = None) -> np.ndarray:
    """Mark all components of each label but its largest one.

    Of components of equal size, the first one in the order of the array counts as the largest.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence: (K, J, I) probabilities of the labels; see `components`.

    Returns:
        bool (K, J, I), True in the smaller components.
    """
    smaller = np.zeros(labels.shape, bool)
    confidence_of = None if confidence is None else lambda label, box: confidence[box]
    for found in components(labels, confidence_of):
        if len(found.sizes) > 1:
            smaller[found.box] |= found.without(int(np.argmax(found.sizes)))
    return smaller


def keep_largest_component(labels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Relabel the `smaller_components` as background, in place.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence: (K, J, I) probabilities of the labels; of a relabelled voxel, it becomes one
            minus what it was.

    Returns:
        (labels,) number of relabelled voxels by label.
    """
    mask = smaller_components(labels, confidence)
    left_out = np.bincount(labels[mask], minlength=int(labels.max()) + 1)
    labels[mask] = 0
    confidence[mask] = 1 - confidence[mask]
    return left_out


def label_counts(labels: np.ndarray, length: int) -> np.ndarray:
    """Count the voxels of each label, slice by slice: at once, each voxel would need eight bytes.

    Args:
        labels: (K, J, I) integers from 0 to below `length`.

    Returns:
        (length,) int64.
    """
    counts = np.zeros(length, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=length)
    return counts


def label_means(labels: np.ndarray, values: np.ndarray) -> dict[int, float]:
    """Compute the mean over the voxels of each label that has any; arrays are (K, J, I)."""
    length = int(labels.max(initial=0)) + 1
    sums = np.zeros(length)
    for plane, value in zip(labels, values, strict=True):
        sums += np.bincount(plane.ravel(), value.ravel(), length)
    counts = label_counts(labels, length)
    return {
        int(label): float(sums[label] / counts[label]) for label in counts.nonzero()[0] if label
    }


def dice(one: np.ndarray, other: np.ndarray, *, empty: float) -> float:
    """Compute the Dice coefficient of two masks.

    Args:
        one, other: bool arrays of one shape.
        empty: the result if both masks are empty.
    """
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else empty


def _numbered(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Count the face-connected components of a mask, and number them in few bits.

    Callers may hold those of all labels of a scan.
    """
    from scipy import ndimage

    try:
        numbers = np.empty(mask.shape, np.uint16)
        count = ndimage.label(mask, output=numbers)
    except RuntimeError:  # more than 65535 of them
        return ndimage.label(mask)
    return numbers.astype(np.uint8) if count < 256 else numbers, count


def _slabs(mask: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Cut a mask along its first axis, and each slab to what it shows."""
    for start in range(0, len(mask), SLAB):
        slab = mask[start : start + SLAB]
        axes = range(mask.ndim)
        shown = [
            np.flatnonzero(slab.any(axis=tuple(other for other in axes if other != axis)))
            for axis in axes
        ]
        if shown[0].size:
            first, *others = (slice(int(n[0]), int(n[-1]) + 1) for n in shown)
            yield slice(start + first.start, start + first.stop), *others


def _moved(part: tuple[slice, ...], box: Block) -> Block:
    """Return a part of a box's array as a part of the volume."""
    return tuple(
        slice(outer.start + inner.start, outer.start + inner.stop)
        for inner, outer in zip(part, box, strict=True)
    )


def _weights(confidence: np.ndarray) -> np.ndarray:
    """Compute (2p - 1)², at least 1e-4, so that unsure pieces compare by their voxels."""
    return np.maximum(2 * confidence.astype(np.float32) - 1, 0.01) ** 2
