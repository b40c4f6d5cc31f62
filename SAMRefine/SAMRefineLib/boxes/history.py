# SPDX-License-Identifier: Apache-2.0
"""An undo history of immutable states."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

STEPS = 100
"""Steps that can be undone. What a step of a session needs is some KB for each changed slice."""

State = TypeVar("State")


@dataclass(frozen=True)
class History(Generic[State]):
    """The present state, those before it and those that were undone.

    Every step gives a new object.

    Attributes:
        present: the state now.
        past: earlier states, the latest last; `limit` of them at most.
        future: undone states, the one to be redone first comes first.
        limit: number of steps that can be undone.
    """

    present: State
    past: tuple[State, ...] = ()
    future: tuple[State, ...] = ()
    limit: int = STEPS

    def changed(self, state: State) -> Self:
        """Add a state and forget what had been undone; do nothing if it equals the present one."""
        if state == self.present:
            return self
        past = (*self.past, self.present)[-self.limit :]
        return replace(self, present=state, past=past, future=())

    def amended(self, state: State) -> Self:
        """Replace the present state, so that one undo takes back both."""
        return replace(self, present=state)

    def mapped(self, change: Callable[[State], State]) -> Self:
        """Change every state."""
        past, future = (tuple(map(change, states)) for states in (self.past, self.future))
        return replace(self, present=change(self.present), past=past, future=future)

    def undo(self) -> Self:
        """Go back by one state, if there is one."""
        if not self.past:
            return self
        future = (self.present, *self.future)
        return replace(self, present=self.past[-1], past=self.past[:-1], future=future)

    def redo(self) -> Self:
        """Go forward by one undone state, if there is one."""
        if not self.future:
            return self
        past = (*self.past, self.present)
        return replace(self, present=self.future[0], past=past, future=self.future[1:])
