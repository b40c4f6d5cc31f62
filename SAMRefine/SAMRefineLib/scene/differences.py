# SPDX-License-Identifier: Apache-2.0
"""Slices in which two states of a session differ, for undo and redo to show."""

from collections.abc import Iterable, Mapping, Sequence

from ..refine.organ_state import OrganState
from .changes import VoxelChange


def different_slices(
    before: Iterable[OrganState],
    after: Sequence[OrganState],
    changes: Iterable[VoxelChange],
    axis: int,
) -> dict[int, set[int]]:
    """Return the slices in which organs differ, by label; organs that are gone are left out.

    Args:
        before: the organs before.
        after: the organs after.
        changes: changes of their segments in between; they count if no box or point differs.
        axis: the axis of a (K, J, I) array that is sliced.
    """
    known, differing = {organ.label: organ for organ in before}, {}
    for organ in after:
        old = known.get(organ.label)
        slices = _keys(organ.frames.effective(), old.frames.effective() if old else {})
        slices |= _keys(organ.points, old.points if old else {})
        if slices:
            differing[organ.label] = slices
    if differing:
        return differing
    labels = {organ.segment: organ.label for organ in after}
    return {
        labels[change.segment]: set(
            range(change.first[axis], change.first[axis] + change.shape[axis])
        )
        for change in changes
        if change.segment in labels
    }


def _keys(one: Mapping[int, object], other: Mapping[int, object]) -> set[int]:
    return {k for k in one.keys() | other.keys() if one.get(k) != other.get(k)}
