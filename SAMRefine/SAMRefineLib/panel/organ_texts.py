# SPDX-License-Identifier: Apache-2.0
"""Texts of the panel about organs: their states, boxes and refinements."""

import itertools
from collections import Counter
from collections.abc import Sequence

from slicer.i18n import tr as _

from ..refine.acceptance import NO_BOX
from ..refine.familiarity import names_of
from ..refine.organ_state import OrganState


def refined_text(organs: Sequence[OrganState]) -> str:
    """Summarise the refinement of some organs."""
    asked = sum(organ.report.boxes for organ in organs)
    rejected = sum(
        organ.coarse and reason != NO_BOX
        for organ in organs
        for reason in organ.report.kept.values()
    )
    text = _("SAM redrew {organs} in {slices}.").format(
        organs=names_of(organs), slices=_slices(asked - rejected)
    )
    return f"{text} {_kept_text(organs)}".strip()


def box_text(organ: OrganState, slice_index: int) -> str:
    """Tell where the box of a slice comes from."""
    frames = organ.frames
    if slice_index in frames.off:
        return _("box taken away")
    if slice_index not in frames.effective():
        return _("no box")
    if slice_index in frames.edited:
        return _("box moved by hand")
    box = frames.effective()[slice_index]
    if box == frames.automatic.get(slice_index):
        return (
            _("automatic box") if organ.mask_prompt else _("large automatic box (unsure outline)")
        )
    if frames.moved is not None and box == frames.moved.get(slice_index):
        return _("box follows the 3-D box")
    return _("box follows its neighbours")


def state_text(organ: OrganState) -> str:
    if organ.by_hand:
        return _("edited")
    if organ.kept:
        return _("kept")
    if organ.report is None:
        if organ.coarse:
            return _("coarse")
        return _("new") if organ.frames.effective() else _("no box")
    return _("changed") if organ.changed else _("refined")


def state_help(organ: OrganState) -> str:
    texts = [_kept_text([organ])] if organ.report else []
    if organ.by_hand:
        texts.append(_("Edited by hand; slices that SAM draws anew lose these edits."))
    return "\n".join(filter(None, texts))


def _kept_text(organs: Sequence[OrganState]) -> str:
    """Tell in which slices SAM's masks were rejected, or doubted if there was no coarse one."""
    texts = {
        True: _("The coarse outline stayed in {slices}: {reasons}."),
        False: _("Check {slices}, for SAM's outline may be wrong: {reasons}."),
    }
    told = []
    for coarse, text in texts.items():
        some = [organ.report.kept.values() for organ in organs if organ.coarse == coarse]
        if reasons := Counter(itertools.chain(*some)):
            counts = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
            told.append(text.format(slices=_slices(reasons.total()), reasons=counts))
    return " ".join(told)


def _slices(count: int) -> str:
    return _("1 slice") if count == 1 else _("{n} slices").format(n=count)
