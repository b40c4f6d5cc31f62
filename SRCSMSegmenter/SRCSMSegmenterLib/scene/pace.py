# SPDX-License-Identifier: Apache-2.0
"""The time that a run will still take, from its own pace and from the last run of its kind.

Processors differ by more than ten times, so no speed is assumed: before anything is measured in
this session there is no estimate.
"""

from collections.abc import Hashable
from dataclasses import dataclass

LEAST_SHARE = 0.05
"""Share of a stage from which on its pace is taken from what is done."""

LEAST_SECONDS = 1.0
"""Duration of a stage from which on its pace tells that of the later stages."""


@dataclass(frozen=True)
class StageTime:
    """A stage of a finished run: the fraction of the run done at its start, and its seconds."""

    start: float
    seconds: float


_last_runs: dict[Hashable, tuple[float, dict[str, StageTime]]] = {}
"""By kind, the size of the last finished run of this session and its stages, in order."""


class Pace:
    """The pace of a run under way. Loading is not counted: it is short the next time."""

    def __init__(self, kind: Hashable, size: float) -> None:
        """Start.

        Args:
            kind: what the time depends on, such as model and device.
            size: of the input; the time of runs of a kind is about proportional to it.
        """
        self._kind, self._size = kind, size
        last_size, self._last = _last_runs.get(kind, (size, {}))
        self._scale = size / last_size
        self._done: dict[str, StageTime] = {}
        self._stage, self._start, self._fraction, self._since = "load", 0.0, 0.0, 0.0

    def seconds_left(
        self, stage: str, fraction: float, now: float, later_runs: int = 0
    ) -> float | None:
        """Return the seconds until the run is finished; None while they cannot be told.

        Args:
            stage: that the run is in.
            fraction: of the run that is done.
            now: seconds on a clock that never goes back.
            later_runs: runs of the same input's size that follow this one, also counted.
        """
        if stage != self._stage or fraction < self._fraction:  # less: the stage began again
            self._end_stage(now)
            self._stage, self._start, self._since = stage, fraction, now
        self._fraction = fraction
        if stage == "load":
            left, elapsed = self._seconds_after(None) if self._last else None, 0.0
        else:
            elapsed = now - self._since
            left = self._left_of(stage, fraction, elapsed)
        if left is None:
            return None
        whole = sum(done.seconds for done in self._done.values()) + elapsed + left
        return left + later_runs * whole

    def finish(self, now: float) -> None:
        """Keep the stages' times for the next run of this kind."""
        self._end_stage(now)
        _last_runs[self._kind] = (self._size, self._done)

    def _end_stage(self, now: float) -> None:
        if self._stage != "load":
            self._done[self._stage] = StageTime(self._start, now - self._since)

    def _left_of(self, stage: str, fraction: float, elapsed: float) -> float | None:
        """Return the seconds that are left of a stage and of those after it."""
        last = self._last.get(stage)
        if last is None:
            done = fraction - self._start
            return elapsed * (1 - fraction) / done if done > 0 else None
        end = self._end_of(stage)
        share = (fraction - last.start) / (end - last.start) if end > last.start else 0.0
        if share < LEAST_SHARE:
            here = max(0.0, self._scale * last.seconds - elapsed)
        else:
            here = elapsed * (1 - share) / share
            if elapsed >= LEAST_SECONDS and last.seconds > 0:
                self._scale = elapsed / share / last.seconds
        return here + self._seconds_after(stage)

    def _end_of(self, stage: str) -> float:
        """Return the fraction of the last run that was done at the end of a stage."""
        starts = [done.start for done in self._last.values()]
        return (*starts, 1.0)[list(self._last).index(stage) + 1]

    def _seconds_after(self, stage: str | None) -> float:
        """Return the expected seconds of the last run's stages after one, of all after None."""
        first = 0 if stage is None else list(self._last).index(stage) + 1
        return self._scale * sum(done.seconds for done in list(self._last.values())[first:])
