# SPDX-License-Identifier: Apache-2.0
"""What a session has the worker do unasked, and in which order.

After an edit in live mode the slice that is shown is redrawn, then the whole organ; where nothing
is left to redraw, embeddings are computed before they are needed. This is only the list; who has
it does one thing at a time. Needs neither Slicer nor torch.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..boxes.key_frames import KeyFrames
from .organ_state import Organ

NEAR = 4
"""Slices to both sides of the one shown whose embeddings are computed ahead, where every slice has
one of its own."""


class Errand(NamedTuple):
    """Something to be done.

    Attributes:
        kind: what.
        value: label of the organ.
        n: the slice; None for all.
    """

    kind: Literal["redraw", "embed"]
    value: int
    n: int | None = None


class View(NamedTuple):
    """Where the user looks.

    Attributes:
        n: the slice that is shown.
        active: label of the organ that is worked on, or None.
        apart: every slice has an embedding of its own, which is wanted only near the shown one.
    """

    n: int
    active: int | None
    apart: bool

    def wanted(self, organ: Organ) -> frozenset[int]:
        """The slices whose embeddings an organ wants ahead."""
        slices = frozenset(organ.frames.effective())
        return slices & frozenset(range(self.n - NEAR, self.n + NEAR + 1)) if self.apart else slices


class Agenda:
    """What is left to redraw, and which embeddings there are."""

    def __init__(self) -> None:
        self._redraws: list[Errand] = []
        self._embedded: dict[int, tuple[KeyFrames, frozenset[int]]] = {}

    # redrawing

    def __bool__(self) -> bool:
        """Something is left to redraw."""
        return bool(self._redraws)

    @property
    def urgent(self) -> bool:
        """What comes next is a slice that the user looks at."""
        return bool(self._redraws) and self._redraws[0].n is not None

    def redraw(self, organ: Organ, shown: int) -> None:
        """An organ was edited: first the slice that is shown, then all of it."""
        rest = [errand for errand in self._redraws if errand.value != organ.value]
        if shown in organ.frames.effective():
            rest.insert(0, Errand("redraw", organ.value, shown))
        self._redraws = [*rest, Errand("redraw", organ.value)]

    def put_off(self, errand: Errand) -> None:
        """It has to make way; a redrawing comes again later, embeddings are asked for anyway."""
        later = Errand("redraw", errand.value)
        if errand.kind == "redraw" and later not in self._redraws:
            self._redraws.append(later)

    def clear(self) -> None:
        """Redraw nothing."""
        self._redraws.clear()

    def next_redraw(self, organs: Sequence[Organ]) -> tuple[Organ, int | None] | None:
        """The organ, and the slice or None for all; taken from the list."""
        by_value = {organ.value: organ for organ in organs}
        while self._redraws:
            _, value, n = self._redraws.pop(0)
            organ = by_value.get(value)
            if organ is not None and {n} <= {None, *organ.frames.effective()}:
                return organ, n
        return None

    # embeddings

    def embeddings(self, organs: Sequence[Organ], view: View) -> dict[int, bool]:
        """Label -> whether all that is wanted is there, of the organs that want any."""
        return {
            organ.value: self._has(organ, wanted)
            for organ in organs
            if organ.enabled and (wanted := view.wanted(organ))
        }

    def next_embedding(self, organs: Sequence[Organ], view: View) -> Organ | None:
        """The organ to embed: the active one, else the one nearest to the slice that is shown."""

        def urgency(organ: Organ) -> tuple[bool, int]:
            nearest = min(abs(n - view.n) for n in organ.frames.effective())
            return organ.value != view.active, nearest

        ready = self.embeddings(organs, view)
        waiting = [organ for organ in organs if not ready.get(organ.value, True)]
        return min(waiting, key=urgency, default=None)

    def embedded(self, organ: Organ, slices: frozenset[int]) -> None:
        """Embeddings of an organ's slices are there now."""
        frames, before = self._embedded.get(organ.value, (None, frozenset()))
        if frames == organ.frames:
            slices |= before
        self._embedded[organ.value] = organ.frames, slices

    def forget_embeddings(self) -> None:
        """There are none any more."""
        self._embedded.clear()

    def _has(self, organ: Organ, wanted: frozenset[int]) -> bool:
        frames, slices = self._embedded.get(organ.value, (None, frozenset()))
        return frames == organ.frames and wanted <= slices
