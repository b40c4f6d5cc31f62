# SPDX-License-Identifier: Apache-2.0
"""Organs that a SAM was trained on and others. It needs neither Slicer nor torch."""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from SRCSMSegmenterLib.terminology import readable

from ..boxes.key_frames import KeyFrames
from ..sam.catalogue import redrawn_unasked, trained_on
from .organ_state import OrganState


class Sam(Protocol):
    """A SAM, or the card of one."""

    @property
    def name(self) -> str:
        """The name to show."""

    @property
    def organs(self) -> frozenset[str]:
        """Names of the organs that it was trained on; empty if it does not say."""


def unfamiliar(organs: Iterable[OrganState], sam: Sam) -> list[OrganState]:
    """Return the organs that a SAM was not trained on; none if it does not say on which."""
    organs = list(organs)
    known = {organ.label for organ in trained_on(organs, sam.organs)}
    return [organ for organ in organs if organ.label not in known]


def ticked(organs: Iterable[OrganState]) -> list[OrganState]:
    """Return the organs that take part in the refinement of all."""
    return [organ for organ in organs if organ.enabled and not organ.kept]


def left_alone(organs: Iterable[OrganState], sam: Sam) -> list[OrganState]:
    """Return the ticked organs with a coarse mask that a SAM would probably make worse."""
    organs = list(organs)
    trusted = {organ.label for organ in redrawn_unasked(organs, sam.organs)}
    return [organ for organ in ticked(organs) if organ.coarse and organ.label not in trusted]


def organs_to_refine(
    organs: Sequence[OrganState], asked: Iterable[OrganState] | None, sam: Sam
) -> tuple[list[OrganState], list[str]]:
    """Choose the organs that a refinement redraws.

    Args:
        organs: all organs.
        asked: those that the user chose; None for all that are ticked and not `left_alone`.
        sam: the SAM.

    Returns:
        Those with boxes, and sentences about what the SAM was not trained on.
    """
    left = left_alone(organs, sam) if asked is None else []
    if asked is None:
        asked = [organ for organ in ticked(organs) if organ not in left]
    chosen, sentences = [organ for organ in asked if organ.frames.effective()], []
    if left:
        sentences.append(
            f"{sam.name} was not trained on these, which stay as they are unless you refine them "
            f"by themselves: {names_of(left)}."
        )
    if risky := unfamiliar(chosen, sam):
        sentences.append(f"{sam.name} was not trained on these, so check them: {names_of(risky)}.")
    return chosen, sentences


def frames_to_refine(
    frames: Sequence[KeyFrames],
    coarse: Collection[int],
    asked: Collection[str] | None,
    sam: Sam,
) -> tuple[list[KeyFrames], list[str]]:
    """Choose the boxes of a file that a refinement uses; see `organs_to_refine`.

    Args:
        frames: the boxes of the file.
        coarse: labels of the organs with a coarse mask.
        asked: names of the organs that the user chose, or None.
        sam: the SAM.
    """
    organs = [OrganState(each, each.name, coarse=each.label in coarse) for each in frames]
    named = None if asked is None else [organ for organ in organs if organ.name in asked]
    chosen, sentences = organs_to_refine(organs, named, sam)
    return [organ.frames for organ in chosen], sentences


def names_of(organs: Iterable[OrganState]) -> str:
    """List the names of organs."""
    return ", ".join(readable(organ.name) for organ in organs)
