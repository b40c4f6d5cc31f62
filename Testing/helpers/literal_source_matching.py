# SPDX-License-Identifier: Apache-2.0
"""Source matching voxel by voxel in plain Python: the definition as it reads.

The reference that the tests and `make bench` hold the fast implementation against. Images are
numpy arrays of any shape; histograms are dictionaries value -> count.
"""

import numpy as np

from SRCSMSegmenterLib.errors import SourceMatchingError


def to_integers(array, rule):
    """Step 1 (plain maximum only)."""
    voxels = array.ravel().tolist()
    if rule.modality == "CT":
        lower, upper = rule.window
        integers = [round(min(max(v, lower), upper)) for v in voxels]
    else:
        maximum = max(voxels)
        integers = [round(v * 2048 / maximum) for v in voxels]
    return np.array(integers, dtype=np.int32).reshape(array.shape)


def interior_counts(image):
    """Step 2: minimum, maximum and the counts of the values strictly between."""
    voxels = image.ravel().tolist()
    lo, hi = min(voxels), max(voxels)
    counts = {}
    for v in voxels:
        if lo < v < hi:
            counts[v] = counts.get(v, 0) + 1
    return lo, hi, counts


def cumulative(counts):
    """CDF(v) = count of interior values <= v, divided by their number."""
    number = sum(counts.values())
    cdf, so_far = {}, 0
    for v in sorted(counts):
        so_far += counts[v]
        cdf[v] = so_far / number
    return cdf


def fit(images):
    """Step 3: the smallest minimum, and the counts of all images added up."""
    minimum, total = None, {}
    for image in images:
        lo, _, counts = interior_counts(image)
        minimum = lo if minimum is None else min(minimum, lo)
        for v, count in counts.items():
            total[v] = total.get(v, 0) + count
    if len(total) < 2:
        raise SourceMatchingError("source")
    return minimum, total


def match(image, source_minimum, source_counts):
    """Steps 4 and 5."""
    lo, hi, counts = interior_counts(image)
    if len(counts) < 2:
        raise SourceMatchingError("target")
    source_cdf, target_cdf = cumulative(source_counts), cumulative(counts)
    goes_to = {
        v: max((s for s in source_cdf if source_cdf[s] <= target_cdf[v]), default=source_minimum)
        for v in counts
    }
    goes_to[lo] = source_minimum
    goes_to[hi] = goes_to[max(counts)]
    matched = [goes_to[v] for v in image.ravel().tolist()]
    return np.array(matched, dtype=np.int32).reshape(image.shape)
