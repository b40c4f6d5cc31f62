# SPDX-License-Identifier: Apache-2.0
"""Client of the worker's refinement tasks: a volume is sent once, and again if it was forgotten.

It needs neither Slicer nor torch.
"""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.worker.client import Job, Worker
from SRCSMSegmenterLib.worker.protocol import WorkerError, as_worker_error

from ..boxes.key_frames import KeyFrames, boxes_to_json
from ..boxes.patches import Patch
from .organ_state import OrganState, Settings
from .tasks import UNKNOWN_VOLUME

if TYPE_CHECKING:
    import slicer

    from ..scene.session import RefineSession

GRACE = 30.0
"""Seconds until a cancelled job is stopped by force: a large SAM takes some for a canvas, and a
killed worker loses the SAM, the volume and all embeddings."""


Coarse = Callable[[int], Callable[[], Patch] | None]
"""Called with an organ's label; returns None without a coarse mask, or a function, for any thread,
that makes it: probabilities, or a bool mask."""


@dataclass(frozen=True, eq=False)
class Request:
    """A request to the worker about organs of a volume.

    Attributes:
        task: the worker's task.
        frames: the boxes to send, one entry for each organ.
        parameters: other parameters of the task (`tasks.refine`), such as mask_threshold.
        organs: the organs when they were asked about.
    """

    task: Literal["embed", "refine"]
    frames: tuple[KeyFrames, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    organs: tuple[OrganState, ...] = ()

    @classmethod
    def about(
        cls,
        task: Literal["embed", "refine"],
        organs: Sequence[OrganState],
        settings: Settings,
        slices: Collection[int] | None = None,
    ) -> "Request":
        """Ask about organs, in some slices with boxes only, or in all."""
        sent = [
            organ if slices is None else organ.with_frames(only(organ.frames, slices))
            for organ in organs
        ]
        chooses = task == "embed" or slices is None
        parameters = {
            "points": {
                str(organ.label): {
                    str(k): [list(point) for point in points]
                    for k, points in organ.usable_points().items()
                }
                for organ in sent
            },
            "choose": [organ.label for organ in organs if organ.awaits_choice and chooses],
            "mask_prompt": [
                organ.label for organ in organs if organ.mask_prompt and settings.mask_prompt
            ],
            "keep_unboxed": [organ.label for organ in organs if organ.keep_unboxed],
            "mask_threshold": settings.mask_threshold,
        }
        return cls(task, tuple(organ.frames for organ in sent), parameters, tuple(organs))


def only(frames: KeyFrames, slices: Collection[int]) -> KeyFrames:
    """Return the boxes of some slices with boxes alone; SAM sees the same crops of them."""
    boxes, slices = frames.effective(), frozenset(slices)
    off = frozenset(range(frames.grid.count)) - slices
    return replace(frames, edited={k: boxes[k] for k in slices}, off=off, limit=None)


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls.

    Attributes:
        progress: called with the stage and its fraction done, until the run is finished.
        log: called with lines for the user, until the run is finished.
        answered: called once at the end, to take the answer over; raises why it cannot.
        done: called once after it, whether the run succeeded, failed or was cancelled.
    """

    progress: Callable[[str, float], None] = lambda stage, fraction: None
    log: Callable[[str], None] = lambda line: None
    answered: Callable[["RefineRun"], None] = lambda run: None
    done: Callable[["RefineRun"], None] = lambda run: None


NOT_CALLED = Callbacks()


class RefineRun:
    """A request under way and, at the end, its answer.

    Attributes:
        client: the client that was asked.
        request: what was asked.
        session: the session that asked; None outside Slicer.
        job: the worker's job; a new one if the volume had to be sent again.
        finished: True after the end, whether it succeeded, failed or was cancelled.
        error: why it failed; of kind "Cancelled" if it was cancelled.
        messages: sentences about the result for the user.
        reports: summaries of the organs (`tasks.refine`).
        chosen: boxes that SAM chose (`tasks.refine`), or None.
        label_map: a label map (rows, columns) for each slice; later runs share those of slices
            that they do not change.
    """

    def __init__(
        self,
        client: "RefineClient",
        request: Request,
        callbacks: Callbacks,
        session: "RefineSession | None" = None,
    ) -> None:
        """Prepare a run, which `RefineClient.submit` starts."""
        self.client, self.request, self.session = client, request, session
        self.callbacks = callbacks
        self.job: Job | None = None
        self.finished = False
        self.error: WorkerError | None = None
        self.messages: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.chosen: dict[str, Any] | None = None
        self.label_map: Sequence[np.ndarray] | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the organs that are asked about."""
        return tuple(frames.label for frames in self.request.frames)

    def cancel(self) -> None:
        """End the run at once and change nothing; the worker has `GRACE` seconds to notice."""
        if not self.finished:
            self.job.cancel()
            self.end(WorkerError("Cancelled", "The refinement was cancelled; nothing was changed."))

    def end(self, error: WorkerError | None = None) -> None:
        """Finish the run, unless it is finished already."""
        if self.finished:
            return
        self.finished, self.error = True, error
        try:
            self.callbacks.answered(self)
        except Exception as reason:  # to whoever waits; here it would end in the event loop
            self.error = as_worker_error(reason)
        self.callbacks.done(self)

    def wait(self) -> "slicer.vtkMRMLSegmentationNode":
        """Wait for the end, while Slicer goes on drawing, and return the segmentation.

        Raises:
            WorkerError: it failed or was cancelled.
        """
        return self.session.wait_for(self)


class RefineClient:
    """A volume with a SAM and a mosaic at a worker."""

    def __init__(
        self, worker: Callable[[], Worker], volume: Volume, opening: Mapping[str, Any]
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            worker: returns the worker to ask now, which may be another than before.
            volume: not to be written to any more.
            opening: parameters of the task "refine" that describe how to load the volume: sam,
                sam_kind, modality, mosaic, device.
        """
        self._worker, self._volume = worker, volume
        self._opening = {**opening, "volume": uuid.uuid4().hex, **volume.geometry.to_json()}
        self._sent: set[str | int] = set()
        # The worker's last result, None if it is uncertain, and how many are under way.
        self._last: Sequence[np.ndarray] | None = None
        self._awaited = 0

    def submit(
        self,
        request: Request,
        coarse: Coarse,
        callbacks: Callbacks = NOT_CALLED,
        session: "RefineSession | None" = None,
    ) -> RefineRun:
        """Send a request.

        Args:
            request: what to ask.
            coarse: called with a label if the worker lacks its coarse mask.
            callbacks: functions to call.
            session: the session that asks.
        """
        run = RefineRun(self, request, callbacks, session)
        self._send(run, coarse, again=True)
        return run

    def _send(self, run: RefineRun, coarse: Coarse, *, again: bool) -> None:
        """Submit the job of a run; with `again` once more if the worker forgot the volume."""
        request, callbacks = run.request, run.callbacks
        # The reply holds changes of the last result if that is certain to be the worker's as well.
        last = self._last if self._awaited == 0 else None
        self._awaited += request.task == "refine"
        boxes = boxes_to_json(request.frames)

        def done(job: Job) -> None:
            self._receive(run, job, last)
            unknown = job.error is not None and job.error.kind == UNKNOWN_VOLUME
            if again and unknown and not run.finished:
                self._send(run, coarse, again=False)
            else:
                run.end(job.error)

        run.job = self._worker().submit(
            request.task,
            {**self._opening, **request.parameters, "boxes": boxes, "whole": last is None},
            self._unsent(request.frames, coarse),
            progress=lambda *told: run.finished or callbacks.progress(*told),
            log=lambda line: run.finished or callbacks.log(line),
            done=done,
            grace=GRACE,
        )

    def _unsent(
        self, frames: Sequence[KeyFrames], coarse: Coarse
    ) -> Callable[[], dict[str, np.ndarray]]:
        """Return a function, for any thread, that makes the arrays the worker needs and lacks."""
        arrays = {} if "image" in self._sent else {"image": self._volume.array}
        labels = [each.label for each in frames if each.label not in self._sent]
        patches = {label: patch for label in labels if (patch := coarse(label)) is not None}
        self._sent |= {"image", *labels}

        def made() -> dict[str, np.ndarray]:
            for label, patch in patches.items():
                arrays[f"coarse_{label}"] = (made := patch()).mask
                arrays[f"first_{label}"] = np.array(made.first)
            return arrays

        return made

    def _receive(self, run: RefineRun, job: Job, last: Sequence[np.ndarray] | None) -> None:
        """Keep track of what the worker knows after a job, and store its reply.

        Args:
            last: the result before the job, (rows, columns) for each slice, or None.
        """
        self._awaited -= run.request.task == "refine"
        if job.error is not None:
            self._last = None
            # Arrays that arrived before the first progress stay with the worker, unless it lost
            # the whole volume, which the next reply tells.
            if job.error.kind != "Cancelled" or job.stage == "start":
                self._sent.clear()
            return
        run.chosen = job.reply.values["chosen"]
        if run.request.task == "refine":
            self._last = run.label_map = _updated(job, last)
            run.reports = job.reply.values["organs"]


def _updated(job: Job, last: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """Return the label map after a reply, (rows, columns) for each slice.

    Args:
        last: the result that the reply holds changes of; None if the reply holds all slices.
    """
    labels, values = job.reply.arrays["labels"], job.reply.values
    if last is None:
        return list(np.moveaxis(labels, 2 - values["axis"], 0))
    updated = list(last)
    for slice_index, changed in zip(values["changed"], labels, strict=True):
        updated[slice_index] = changed
    return updated
