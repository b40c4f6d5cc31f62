# SPDX-License-Identifier: Apache-2.0
"""Connected components of label maps, and the overlap of masks."""

import numpy as np


def smaller_components(labels: np.ndarray, confidence: np.ndarray | None = None) -> np.ndarray:
    """Mark all face-connected components of each label but its largest one.

    A component's size is the number of its voxels, weighted by the network's confidence if that is
    given: a long scan may show a large piece that is hardly likelier than not. Of components of
    equal size, the first one in the order of the array counts as the largest.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence: (K, J, I) probabilities of the labels; a voxel weighs (2p - 1)², next to
            nothing if p is not above one half.

    Returns:
        bool (K, J, I), True in the smaller components.
    """
    from scipy import ndimage  # when needed: Slicer loads this file at its start

    smaller = np.zeros(labels.shape, bool)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        mask = labels[box] == label
        components, count = ndimage.label(mask)
        if count > 1:
            weights = None if confidence is None else _weights(confidence[box]).ravel()
            sizes = np.bincount(components.ravel(), weights)
            smaller[box] |= mask & (components != 1 + np.argmax(sizes[1:]))
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
    smaller = smaller_components(labels, confidence)
    left_out = np.bincount(labels[smaller], minlength=int(labels.max()) + 1)
    labels[smaller] = 0
    confidence[smaller] = 1 - confidence[smaller]
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
