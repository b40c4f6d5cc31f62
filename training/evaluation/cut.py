# SPDX-License-Identifier: Apache-2.0
"""Scans cut to the slices that the labels span, the protocol of most published numbers.

Abdominal CT and MR are published (Ouyang et al. 2023 and all who reuse their data) on scans without
the slices before the first and after the last that shows one of the organs. A network cannot err in
what it does not see, so these numbers are higher than those of whole scans, and cutting needs the
truth. Their cut within the slices, to 192 x 192 pixels, is not repeated here.
"""

from dataclasses import replace

import numpy as np

from SRCSMSegmenterLib.geometry import Geometry, Volume

Slab = tuple[int, range]
"""Voxel axis, 0 to 2 for I to K, and the slices to keep."""


def labelled_slab(truth: Volume, labels: dict[str, int]) -> Slab | None:
    """Find the slices from the first to the last that shows a label; None if none does.

    Args:
        truth: label map, whose slices lie across its slice axis.
        labels: name -> label of those that count.
    """
    axis = truth.geometry.slice_axis
    across = tuple(n for n in range(3) if n != 2 - axis)
    slices = np.flatnonzero(np.isin(truth.array, list(labels.values())).any(axis=across))
    return (axis, range(slices[0], slices[-1] + 1)) if len(slices) else None


def cut(volume: Volume, slab: Slab) -> Volume:
    """Return the slices of a slab; each voxel keeps its place in the patient."""
    axis, slices = slab
    first = np.zeros(3)
    first[axis] = slices.start
    size = list(volume.geometry.size)
    size[axis] = len(slices)
    affine = volume.geometry.affine.copy()
    affine[:3, 3] = volume.geometry.to_ras(first)
    where = [slice(None)] * 3
    where[2 - axis] = slice(slices.start, slices.stop)
    array = np.ascontiguousarray(volume.array[tuple(where)])
    return replace(volume, array=array, geometry=Geometry(tuple(size), affine))
