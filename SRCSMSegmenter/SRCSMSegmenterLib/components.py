# SPDX-License-Identifier: Apache-2.0
"""Connected components of label maps, and the overlap of masks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LabelComponents:
    """The face-connected components of one label.

    Attributes:
        box: slices (K, J, I) of the label map that hold the label.
        numbers: int32, within the box: 1, 2, ... in the order of the array; 0 elsewhere.
        sizes: (components,) voxels of each, weighted by the network's confidence if that is given:
            a long scan may show a large piece that is hardly likelier than not.
    """

    label: int
    box: tuple[slice, slice, slice]
    numbers: np.ndarray
    sizes: np.ndarray

    def without(self, component: int) -> np.ndarray:
        """Mark all components but one, counted from 0; bool, within the box."""
        return (self.numbers != 0) & (self.numbers != component + 1)


def components(
    labels: np.ndarray, confidence: np.ndarray | None = None
) -> Iterator[LabelComponents]:
    """Yield the components of every label that is there.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence: (K, J, I) probabilities of the labels; a voxel weighs (2p - 1)², next to
            nothing if p is not above one half.
    """
    from scipy import ndimage  # when needed: Slicer loads this file at its start

    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        numbers, _ = ndimage.label(labels[box] == label)
        weights = None if confidence is None else _weights(confidence[box]).ravel()
        yield LabelComponents(label, box, numbers, np.bincount(numbers.ravel(), weights)[1:])


def smaller_components(labels: np.ndarray, confidence: np.ndarray | None = None) -> np.ndarray:
    """Mark all components of each label but its largest one.

    Of components of equal size, the first one in the order of the array counts as the largest.

    Args:
        labels, confidence: see `components`.

    Returns:
        bool (K, J, I), True in the smaller components.
    """
    smaller = np.zeros(labels.shape, bool)
    for found in components(labels, confidence):
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
    return relabel_as_background(labels, confidence, smaller_components(labels, confidence))


def relabel_as_background(
    labels: np.ndarray, confidence: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Relabel the voxels of a mask in place; see `keep_largest_component`."""
    left_out = np.bincount(labels[mask], minlength=int(labels.max()) + 1)
    labels[mask] = 0
    confidence[mask] = 1 - confidence[mask]
    return left_out


def dice(one: np.ndarray, other: np.ndarray, *, empty: float) -> float:
    """Compute the Dice coefficient of two masks.

    Args:
        one, other: bool arrays of one shape.
        empty: the result if both masks are empty.
    """
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else empty


def _weights(confidence: np.ndarray) -> np.ndarray:
    """Compute (2p - 1)², at least 1e-4, so that unsure pieces compare by their voxels."""
    return np.maximum(2 * confidence.astype(np.float32) - 1, 0.01) ** 2
