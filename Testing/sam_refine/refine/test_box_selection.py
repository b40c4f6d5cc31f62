# SPDX-License-Identifier: Apache-2.0
"""Small boxes with the coarse mask, or large ones without it: what decides."""

from types import SimpleNamespace

import numpy as np
import pytest

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan, certain_share
from SAMRefineLib.refine import box_selection
from SAMRefineLib.refine.box_selection import choose_prompts
from SRCSMSegmenterLib.geometry import Geometry

SHAPE = (4, 20, 24)
GRID = SliceGrid(Geometry(SHAPE[::-1], np.diag([1.5, 1.25, 6.0, 1.0])), 2)


def organ(value: int, sure: int, shown: int, possible: int) -> CoarseOrgan:
    """In slice 1 columns of 0.9, in slices 1 and 2 of 0.6 beside them, and of 0.2 in slice 3."""
    mask = np.zeros(SHAPE, np.float16)
    mask[1, 5:10, 2 : 2 + sure] = 0.9
    mask[1:3, 5:10, 2 + sure : 2 + sure + shown] = 0.6
    mask[1:4, 5:10, 2 + sure + shown : 2 + sure + shown + possible] = 0.2
    return CoarseOrgan(f"organ {value}", value, mask)


@pytest.fixture
def refiner():
    """SAM's estimates by label, in small and in large boxes; what it was asked is kept."""
    given, asked = {}, []

    def estimates(prompts, **arguments):
        asked.append((prompts, arguments))
        for fraction in (0.0, 0.5, 1.0):
            arguments["progress"]("encode", fraction)
        size = 0 if any(len(p.frames.automatic) == 1 for p in prompts) else 1
        ious = {p.frames.label: given[p.frames.label][size] for p in prompts}
        return {value: iou for value, iou in ious.items() if iou is not None}

    return SimpleNamespace(given=given, asked=asked, grid=GRID, estimates=estimates)


SMALL, LARGE = {1: Box(2, 5, 5, 10)}, Box(2, 5, 15, 10)


def test_how_sure_a_network_is_of_its_mask():
    assert certain_share(organ(1, 3, 1, 5).mask) == pytest.approx(15 / 25)
    assert certain_share(organ(1, 3, 0, 5).mask) == 1
    assert certain_share(organ(1, 0, 2, 5).mask) == 0
    assert certain_share(np.zeros(SHAPE, np.float16)) == 1
    assert certain_share(organ(1, 3, 4, 5).mask > 0.5) == 1


def test_a_sure_network_gets_small_boxes_and_sam_its_mask(refiner):
    (chosen,) = choose_prompts(refiner, [organ(3, 8, 1, 4)])
    assert chosen.frames.automatic == {1: Box(2, 5, 10, 10)}
    assert chosen.mask_prompt
    assert not chosen.keep_unboxed  # slice 2 shows it, but unsure
    assert (chosen.frames.label, chosen.frames.name) == (3, "organ 3")
    assert not refiner.asked


@pytest.mark.parametrize(
    ("small", "large", "larger"),
    [(0.8, 0.9, True), (0.8, 0.78, True), (0.8, 0.76, False), (None, 0.1, True)],
)
def test_of_an_unsure_one_sam_tells_which_boxes_are_better(refiner, small, large, larger):
    refiner.given[1] = small, large
    sure, unsure = organ(2, 8, 1, 4), organ(1, 3, 4, 6)
    told, heard = [], []
    one, other = choose_prompts(
        refiner,
        [unsure, sure],
        progress=lambda *progress: heard.append(progress),
        cancelled=lambda: told.append(1),
    )
    assert heard == [("choose", n) for n in (0.0, 0.25, 0.5, 0.5, 0.75, 1.0)]
    assert other.frames.automatic == {1: Box(2, 5, 10, 10)}
    assert one.coarse is unsure.mask
    assert one.mask_prompt is not larger
    assert one.keep_unboxed is larger
    if larger:
        assert one.frames.automatic[1] == LARGE
        assert list(one.frames.automatic) == [1, 2, 3]
    else:
        assert one.frames.automatic == SMALL
    for prompts, arguments in refiner.asked:
        assert [p.frames.label for p in prompts] == [1]
        assert not prompts[0].mask_prompt
        arguments["cancelled"]()
    assert len(told) == 2


def test_an_organ_that_may_be_nowhere_keeps_the_small_boxes(refiner, monkeypatch):
    monkeypatch.setattr(box_selection, "POSSIBLE", 0.7)
    refiner.given[1] = None, None
    (chosen,) = choose_prompts(refiner, [organ(1, 0, 4, 0)])
    assert chosen.frames.automatic == {}
    assert chosen.mask_prompt
