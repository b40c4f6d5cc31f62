# SPDX-License-Identifier: Apache-2.0
"""Connected components of label maps, and the overlap of masks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .blocks import Block, whole_block
from .runs import Runs, connected, runs_of

ConfidenceOf = Callable[[int, Block], np.ndarray]
"""From a label and a block of the scan to the label's probability there, (k, j, i)."""


@dataclass(frozen=True, eq=False)
class LabelComponents:
    """The face-connected components of one label, numbered from 0 in the order of the array.

    Attributes:
        runs: all voxels of the label.
        numbers: (runs,) component of each run.
        sizes: (components,) voxels of each, weighted by the network's confidence if that is given:
            a long scan may show a large piece that is hardly likelier than not.
        means: (components,) mean confidence of each; 1 if none is given.
    """

    label: int
    runs: Runs
    numbers: np.ndarray
    sizes: np.ndarray
    means: np.ndarray

    def component(self, number: int) -> Runs:
        """Return the voxels of a component."""
        return self.runs[self.numbers == number]

    def without(self, number: int) -> Runs:
        """Return the voxels of all components but one."""
        return self.runs[self.numbers != number]


def components(
    labels: np.ndarray, confidence_of: ConfidenceOf | None = None
) -> Iterator[LabelComponents]:
    """Yield the components of every label that is there.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence_of: probabilities of the labels; a voxel weighs (2p - 1)², next to nothing if p
            is not above one half.
    """
    runs, values = runs_of(labels)
    first_runs = connected(runs, values)
    by_label = np.argsort(values, kind="stable")
    present, starts = np.unique(values[by_label], return_index=True)
    for label, own in zip(present.tolist(), np.split(by_label, starts[1:]), strict=False):
        found = runs[own]
        _, numbers = np.unique(first_runs[own], return_inverse=True)
        voxels = np.bincount(numbers, found.lengths)
        sizes, sums = voxels, voxels
        if confidence_of is not None:
            sizes, sums = _confident(found, numbers, partial(confidence_of, label))
        yield LabelComponents(label, found, numbers, sizes, sums / voxels)


def _confident(
    runs: Runs, numbers: np.ndarray, confidence_of: Callable[[Block], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Add up the weights and the probabilities of the voxels of each component."""
    sizes, sums = np.zeros((2, int(numbers.max()) + 1))
    for some in runs.slabs():
        part = runs[some]
        values = confidence_of(part.box).astype(np.float32)
        sums += np.bincount(numbers[some], part.sums(values, part.box), len(sums))
        sizes += np.bincount(numbers[some], part.sums(_weights(values), part.box), len(sizes))
    return sizes, sums


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
            left_out = found.without(int(np.argmax(found.sizes)))
            left_out.fill(smaller, whole_block(labels.shape), True)
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
    """Count the voxels of each label, among those of each slice that are labelled at all.

    Args:
        labels: (K, J, I) integers from 0 to below `length`.

    Returns:
        (length,) int64.
    """
    counts = np.zeros(length, np.int64)
    for plane in labels:
        counts += np.bincount(plane[plane != 0], minlength=length)
    counts[0] = labels.size - counts.sum()
    return counts


def label_means(labels: np.ndarray, values: np.ndarray) -> dict[int, float]:
    """Compute the mean over the voxels of each label that has any; arrays are (K, J, I)."""
    length = int(labels.max(initial=0)) + 1
    sums = np.zeros(length)
    for plane, value in zip(labels, values, strict=True):
        labelled = plane != 0
        sums += np.bincount(plane[labelled], value[labelled], length)
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


def _weights(confidence: np.ndarray) -> np.ndarray:
    """Compute (2p - 1)², at least 1e-4, so that unsure pieces compare by their voxels."""
    return np.maximum(2 * confidence - 1, 0.01) ** 2
