# SPDX-License-Identifier: Apache-2.0
"""Slices of an organ that a reader should look at, the same in every list.

Slices are counted from 0 along the scan's slice axis (`Geometry.slice_axis`), mostly K, as in the
voxel coordinates that 3D Slicer shows under the mouse.
"""

from collections.abc import Iterable

APART_MM = 10.0
"""Slices nearer to each other show the same fault."""

LISTED = 5
"""Most slices of an organ in a list."""


def slices_to_check(
    ranked: Iterable[int], thickness: float, listed: int | None = LISTED
) -> list[int]:
    """Choose slices that lie at least `APART_MM` apart.

    Args:
        ranked: slice indices, the least certain first.
        thickness: mm from slice to slice.
        listed: most slices to be chosen; None for any number.

    Returns:
        The chosen ones in the order of `ranked`.
    """
    chosen: list[int] = []
    for k in ranked:
        if len(chosen) == listed:
            break
        # Rounding must not take slices of exactly that distance away.
        if all(abs(k - other) * thickness > APART_MM - 1e-6 for other in chosen):
            chosen.append(k)
    return chosen
