# SPDX-License-Identifier: Apache-2.0
"""Which organs a refinement redraws unasked, and what is said of the others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.familiarity import left_alone, organs_to_refine, unfamiliar
from SAMRefineLib.refine.organ_state import OrganState
from SAMRefineLib.sam.catalogue import SamCard
from SRCSMSegmenterLib.geometry import Geometry

GRID = SliceGrid(Geometry((20, 20, 4), np.eye(4)), 2)


def organ(name, label, **more):
    boxes = {1: Box(2, 2, 9, 9)}
    return OrganState(KeyFrames(name, label, GRID, boxes), name, **{"coarse": True, **more})


def sam(*organs):
    return SamCard(Path("sam"), "small", "tiny", "", "", organs=frozenset(organs))


LIVER, KIDNEY, STOMACH = organ("liver", 1), organ("Kidney right", 2), organ("stomach", 3)
SAM = sam("liver", "right_kidney")


def test_all_are_those_that_the_sam_was_trained_on_whatever_their_spelling():
    chosen, sentences = organs_to_refine([LIVER, KIDNEY, STOMACH], None, SAM)
    assert chosen == [LIVER, KIDNEY]
    assert sentences == [
        "tiny was not trained on these, which stay as they are unless you refine them by "
        "themselves: stomach."
    ]


def test_an_organ_that_is_asked_for_is_redrawn_with_a_hint():
    chosen, sentences = organs_to_refine([LIVER, STOMACH], [STOMACH], SAM)
    assert chosen == [STOMACH]
    assert sentences == ["tiny was not trained on these, so check them: stomach."]
    assert organs_to_refine([LIVER, STOMACH], [LIVER], SAM) == ([LIVER], [])


def test_an_organ_without_an_outline_cannot_be_made_worse():
    drawn = replace(STOMACH, coarse=False)
    chosen, sentences = organs_to_refine([LIVER, drawn], None, SAM)
    assert chosen == [LIVER, drawn]
    assert "check them: stomach" in sentences[0]


@pytest.mark.parametrize(("trained", "said"), [((), 0), (("left ventricle",), 1)])
def test_a_sam_that_does_not_say_or_knows_none_redraws_all(trained, said):
    chosen, sentences = organs_to_refine([LIVER, STOMACH], None, sam(*trained))
    assert chosen == [LIVER, STOMACH]
    assert len(sentences) == said


def test_what_is_not_ticked_or_kept_is_not_told_of():
    organs = [LIVER, replace(STOMACH, enabled=False), replace(organ("spleen", 4), kept=True)]
    assert left_alone(organs, SAM) == []
    assert organs_to_refine(organs, None, SAM) == ([LIVER], [])
    assert [each.name for each in unfamiliar(organs, SAM)] == ["stomach", "spleen"]


def test_that_no_known_organ_is_ticked_does_not_make_others_known():
    organs = [replace(LIVER, enabled=False), STOMACH]
    chosen, sentences = organs_to_refine(organs, None, SAM)
    assert chosen == []
    assert "stomach" in sentences[0]
