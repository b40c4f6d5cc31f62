# SPDX-License-Identifier: Apache-2.0
"""The state of an organ: what its edits change."""

from geometries import oblique_left_handed

from SAMRefineLib.boxes.boxes import Box, Box3D, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.organ_state import OrganState

GRID = SliceGrid(oblique_left_handed((40, 30, 20)), 2)


def frames():
    """Slices 5 to 10; the organ narrows towards the last."""
    return KeyFrames("liver", 3, GRID, {n: Box(10, 8, 30 - n, 20) for n in range(5, 11)})


def test_edits_mark_an_organ_as_changed_and_count():
    organ = OrganState(frames(), "liver", changed=False)
    assert organ.edited == 0
    assert organ.with_frames(frames()) is organ
    assert organ.with_points({4: []}) is organ
    assert organ.with_box(7, Box(9, 9, 20, 20)).changed
    assert organ.with_bound(Box3D((10, 8, 5), (24, 20, 11))).edited == 1
    assert organ.with_frames(frames().switch_off(6)).edited == 1
    assert organ.with_points({6: [(3, 4, True)], 15: [(1, 1, False)]}).usable_points().keys() == {6}
    assert organ.near_box(19) == frames().automatic[10]
    assert OrganState(KeyFrames("new", 1, GRID), "x").near_box(3) is None
