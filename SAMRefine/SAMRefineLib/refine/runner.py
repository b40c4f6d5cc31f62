# SPDX-License-Identifier: Apache-2.0
"""Runner of a session's background jobs, one at a time. It needs neither Slicer nor torch."""

from collections.abc import Callable, Sequence

from SRCSMSegmenterLib.errors import SRCSMError
from SRCSMSegmenterLib.worker.protocol import WorkerError

from .client import RefineRun
from .organ_state import OrganState
from .schedule import BackgroundJob, Schedule, View


class BackgroundRunner:
    """The background jobs of a session: redraws, then embeddings ahead of need.

    Attributes:
        schedule: redraws that are due, and embeddings that exist.
        busy: the job that runs, or None.
        live: redraw after each edit.
        ahead: compute embeddings ahead of need.
        error: why embeddings cannot be computed; None if they can.
    """

    def __init__(self, start: Callable[[BackgroundJob, OrganState, View], RefineRun]) -> None:
        """Prepare; `start` starts a job, whose end has to call `ended` and then `go_on`."""
        self.schedule = Schedule()
        self.busy: BackgroundJob | None = None
        self.live = self.ahead = False
        self.error: WorkerError | None = None
        self._start = start
        self._run: RefineRun | None = None

    @property
    def redrawing(self) -> bool:
        """True if a redraw runs or is due."""
        return bool(self.schedule) or (self.busy is not None and self.busy.kind == "redraw")

    def go_on(self, organs: Sequence[OrganState], view: View) -> None:
        """Start the next job unless one runs; a redraw of the shown slice interrupts longer ones.

        Raises:
            SRCSMError: the job could not be started.
        """
        if self.busy is not None:
            if self.schedule.urgent and self.busy.slice_index is None:
                self.schedule.postpone(self.busy)
                self._run.cancel()  # its end goes on with the shown slice
            return
        if (redraw := self.schedule.next_redraw(organs)) is not None:
            organ, slice_index = redraw
            job = BackgroundJob("redraw", organ.label, slice_index)
        else:
            organ = self.schedule.next_embedding(organs, view) if self._embeds else None
            if organ is None:
                return
            job = BackgroundJob("embed", organ.label)
        self.busy = job
        try:
            self._run = self._start(job, organ, view)
        except SRCSMError:
            self.busy = None
            raise

    @property
    def _embeds(self) -> bool:
        return self.ahead and self.error is None

    def ended(self) -> None:
        """Record the end of the job that ran."""
        self.busy = None

    def cancel(self) -> None:
        """Cancel the job that runs, if there is one."""
        if self.busy is not None:
            self._run.cancel()

    def forget_embeddings(self) -> None:
        """Cancel the job that runs, and compute all embeddings anew."""
        self.error = None
        self.cancel()
        self.schedule.forget_embeddings()

    def close(self) -> None:
        """Drop the jobs due; one that runs goes on, as its embeddings stay in the cache."""
        self.schedule.clear()
        if self._run is not None and self._run.job.state == "queued":
            self._run.cancel()

    def embeddings(self, organs: Sequence[OrganState], view: View) -> dict[int, str]:
        """Return "ready", "running", "waiting" or "failed" by label, for organs with boxes."""

        def state(label: int, ready: bool) -> str:
            if ready:
                return "ready"
            if self.busy == BackgroundJob("embed", label):
                return "running"
            return "waiting" if self.error is None else "failed"

        known = self.schedule.embeddings(organs, view)
        return {label: state(label, ready) for label, ready in known.items()}
