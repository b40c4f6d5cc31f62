# SPDX-License-Identifier: Apache-2.0
"""Undo history of a session: its organs, and the changes of segments that belong to each step."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from SRCSMSegmenterLib.errors import PromptError

from ..boxes.history import History
from ..refine.organ_state import NeighbourRule, OrganState
from .changes import VoxelChange, joined
from .outlines import Outlines


@dataclass(frozen=True)
class State:
    """A state that undo can return to.

    Attributes:
        organs: the organs.
        changes: changes of segments since the state before, at most one for each segment.
        mask_thresholds: theta 2 before and after, if it was moved since the state before.
    """

    organs: tuple[OrganState, ...]
    changes: tuple[VoxelChange, ...] = ()
    mask_thresholds: tuple[float, float] | None = None


class EditHistory:
    """The organs of a session, which can be undone together with the segments drawn from them.

    Attributes:
        steps: the states.
    """

    def __init__(self, organs: tuple[OrganState, ...], outlines: Outlines) -> None:
        """Start with organs, and nothing to undo."""
        self.steps = History(State(organs))
        self._outlines = outlines
        self._past_of_move: tuple[State, ...] | None = None  # of the last step that moved theta 2

    # organs

    @property
    def organs(self) -> tuple[OrganState, ...]:
        """The organs now."""
        return self.steps.present.organs

    def organ(self, label: int) -> OrganState:
        """Return the organ with a label.

        Raises:
            PromptError: there is none.
        """
        for organ in self.organs:
            if organ.label == label:
                return organ
        raise PromptError(f"There is no organ with the label {label}.")

    def replaced(self, *organs: OrganState) -> tuple[OrganState, ...]:
        """Return all organs, with these in place of those with the same labels."""
        new = {organ.label: organ for organ in organs}
        return tuple(new.get(organ.label, organ) for organ in self.organs)

    # steps

    def record(self, organs: tuple[OrganState, ...], changes: Sequence[VoxelChange] = ()) -> None:
        """Add a step; nothing happens if it equals the present state."""
        self.steps = self.steps.changed(State(organs, tuple(changes)))

    def amend(self, organs: Iterable[OrganState], changes: Sequence[VoxelChange] = ()) -> None:
        """Extend the last step."""
        state = self.steps.present
        changes = joined(state.changes, changes)
        self.steps = self.steps.amended(replace(state, organs=tuple(organs), changes=changes))

    def record_threshold(self, organs: tuple[OrganState, ...], before: float, after: float) -> None:
        """Add a move of theta 2; moves without another step in between are one step."""
        state = self.steps.present
        if self.steps.past is not self._past_of_move:
            self.steps = self.steps.changed(State(organs, mask_thresholds=(before, after)))
            self._past_of_move = self.steps.past
        else:
            thresholds = state.mask_thresholds[0], after
            self.steps = self.steps.amended(
                replace(state, organs=organs, mask_thresholds=thresholds)
            )

    def place(
        self,
        organs: Sequence[OrganState],
        masks: Mapping[str, Mapping[int, np.ndarray]],
        neighbours: NeighbourRule,
        *,
        amend: bool,
    ) -> None:
        """Draw masks into segments, and record it.

        Args:
            organs: the organs after it.
            masks: by segment ID and slice index, bool (rows, columns); other slices stay.
            neighbours: rule for voxels of other segments.
            amend: extend the last step, else add one.
        """
        self._outlines.sync(self.organs)
        changes = self._outlines.changes_to(masks, neighbours)
        self._outlines.draw(changes)
        (self.amend if amend else self.record)(self.replaced(*organs), changes)

    def mark_by_hand(self, ids: Collection[str]) -> bool:
        """Mark organs whose segments others changed, in all states: undo leaves their edits.

        Returns:
            True if there are any.
        """

        def marked(state: State) -> State:
            organs = (replace(o, by_hand=o.by_hand or o.segment in ids) for o in state.organs)
            return replace(state, organs=tuple(organs))

        if ids:
            self.steps = self.steps.mapped(marked)
        return bool(ids)

    # undo

    @property
    def can_undo(self) -> bool:
        """True if there is a step to undo."""
        return bool(self.steps.past)

    @property
    def can_redo(self) -> bool:
        """True if there is a step to redo."""
        return bool(self.steps.future)

    def undo(self) -> float | None:
        """Undo a step; return theta 2 before it if the step moved that."""
        state = self.steps.present
        self._outlines.draw(state.changes, backwards=True)
        self._return_to(self.steps.undo())
        return state.mask_thresholds and state.mask_thresholds[0]

    def redo(self) -> float | None:
        """Redo a step; return theta 2 after it if the step moved that."""
        steps = self.steps.redo()
        self._outlines.draw(steps.present.changes)
        self._return_to(steps)
        return steps.present.mask_thresholds and steps.present.mask_thresholds[1]

    def _return_to(self, steps: History[State]) -> None:
        """Take other steps, but leave which organs are shown and enabled."""
        flags = {organ.label: (organ.shown, organ.enabled) for organ in self.organs}
        self.steps = steps
        self.amend(
            replace(organ, shown=shown, enabled=enabled)
            for organ in self.organs
            for shown, enabled in [flags.get(organ.label, (organ.shown, organ.enabled))]
        )
        self._outlines.sync(self.organs)
