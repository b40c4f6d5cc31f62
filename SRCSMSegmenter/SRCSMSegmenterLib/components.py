# SPDX-License-Identifier: Apache-2.0
"""Pieces of a label map."""

import numpy as np


def smaller_components(labels: np.ndarray, confidence: np.ndarray | None = None) -> np.ndarray:
    """Where a label map shows anything but the largest face-connected component of each label.

    A component's size is the number of its voxels, each weighted by how sure the network is of it
    where that is known: a long scan may show a large piece that is hardly likelier than not. Of
    components of equal size the one met first, in the order of the array, stays.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence: (K, J, I) probabilities of the labels; a voxel weighs (2p - 1)², next to
            nothing where p is not above one half.

    Returns:
        bool (K, J, I).
    """
    from scipy import ndimage  # when needed: Slicer loads this file at its start

    smaller = np.zeros(labels.shape, bool)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        mask = labels[box] == value
        components, count = ndimage.label(mask)
        if count > 1:
            weights = None if confidence is None else _weights(confidence[box]).ravel()
            sizes = np.bincount(components.ravel(), weights)
            smaller[box] |= mask & (components != 1 + np.argmax(sizes[1:]))
    return smaller


def keep_largest_component(labels: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Call the `smaller_components` background, in place.

    Args:
        labels: (K, J, I) integers.
        confidence: (K, J, I) of the labels, which weighs; one minus what it was where they change.

    Returns:
        Voxels left out, by label value.
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
    """(2p - 1)²; a ten-thousandth at least, so that unsure pieces compare by their voxels."""
    return np.maximum(2 * confidence.astype(np.float32) - 1, 0.01) ** 2
