# SPDX-License-Identifier: Apache-2.0
"""Schedule of a session's background jobs: redraws that are due, and embeddings that exist.

After an edit in live mode the shown slice is redrawn, then the whole organ. If nothing is left to
redraw, embeddings are computed ahead of need. This is only the queue; `runner` runs one job at a
time. It needs neither Slicer nor torch.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..boxes.key_frames import KeyFrames
from .organ_state import OrganState

NEAR = 4
"""Slices to both sides of the shown one whose embeddings are computed ahead, if every slice has an
embedding of its own."""


class BackgroundJob(NamedTuple):
    """A job that the user did not request.

    Attributes:
        kind: "redraw" or "embed".
        label: label of the organ.
        slice_index: the slice; None for all.
    """

    kind: Literal["redraw", "embed"]
    label: int
    slice_index: int | None = None


class View(NamedTuple):
    """The slice and the organ that the user looks at.

    Attributes:
        slice_index: the shown slice.
        active: label of the organ that is worked on, or None.
        apart: True if every slice has an embedding of its own, computed only near the shown one.
        left: labels of organs that are not looked at ahead unless one is worked on.
    """

    slice_index: int
    active: int | None
    apart: bool
    left: frozenset[int] = frozenset()

    def wanted(self, organ: OrganState) -> frozenset[int]:
        """Return the slices whose embeddings an organ needs ahead."""
        slices = frozenset(organ.frames.effective())
        if organ.label in self.left and organ.label != self.active:
            return frozenset()
        if not self.apart:
            return slices
        return slices & frozenset(range(self.slice_index - NEAR, self.slice_index + NEAR + 1))


class Schedule:
    """Redraws that are due, and embeddings that exist."""

    def __init__(self) -> None:
        """Schedule nothing yet."""
        self._redraws: list[BackgroundJob] = []
        self._embedded: dict[int, tuple[KeyFrames, frozenset[int]]] = {}

    # redraws

    def __bool__(self) -> bool:
        """Tell whether a redraw is due."""
        return bool(self._redraws)

    @property
    def urgent(self) -> bool:
        """True if the next redraw is that of a single slice, which the user looks at."""
        return bool(self._redraws) and self._redraws[0].slice_index is not None

    def redraw(self, organ: OrganState, shown: int) -> None:
        """Schedule an organ that was edited: first the shown slice, then all of it."""
        rest = [job for job in self._redraws if job.label != organ.label]
        if shown in organ.frames.effective():
            rest.insert(0, BackgroundJob("redraw", organ.label, shown))
        self._redraws = [*rest, BackgroundJob("redraw", organ.label)]

    def postpone(self, job: BackgroundJob) -> None:
        """Schedule an interrupted redraw again; embeddings are scheduled anyway."""
        later = BackgroundJob("redraw", job.label)
        if job.kind == "redraw" and later not in self._redraws:
            self._redraws.append(later)

    def clear(self) -> None:
        """Drop all redraws."""
        self._redraws.clear()

    def next_redraw(self, organs: Sequence[OrganState]) -> tuple[OrganState, int | None] | None:
        """Take the next redraw: the organ, and the slice or None for all; None if none is due."""
        by_label = {organ.label: organ for organ in organs}
        while self._redraws:
            _, label, slice_index = self._redraws.pop(0)
            organ = by_label.get(label)
            if organ is not None and {slice_index} <= {None, *organ.frames.effective()}:
                return organ, slice_index
        return None

    # embeddings

    def embeddings(self, organs: Sequence[OrganState], view: View) -> dict[int, bool]:
        """Tell by label whether all needed embeddings exist, for organs that need any."""
        return {
            organ.label: self._has(organ, wanted)
            for organ in organs
            if organ.enabled and (wanted := view.wanted(organ))
        }

    def next_embedding(self, organs: Sequence[OrganState], view: View) -> OrganState | None:
        """Return the organ to embed: the active one, else that nearest to the shown slice."""

        def urgency(organ: OrganState) -> tuple[bool, int]:
            nearest = min(abs(k - view.slice_index) for k in organ.frames.effective())
            return organ.label != view.active, nearest

        ready = self.embeddings(organs, view)
        waiting = [organ for organ in organs if not ready.get(organ.label, True)]
        return min(waiting, key=urgency, default=None)

    def embedded(self, organ: OrganState, slices: frozenset[int]) -> None:
        """Record that the embeddings of an organ's slices exist."""
        frames, before = self._embedded.get(organ.label, (None, frozenset()))
        if frames == organ.frames:
            slices |= before
        self._embedded[organ.label] = organ.frames, slices

    def forget_embeddings(self) -> None:
        """Record that no embeddings exist."""
        self._embedded.clear()

    def _has(self, organ: OrganState, wanted: frozenset[int]) -> bool:
        frames, slices = self._embedded.get(organ.label, (None, frozenset()))
        return frames == organ.frames and wanted <= slices
