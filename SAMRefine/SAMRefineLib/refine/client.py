# SPDX-License-Identifier: Apache-2.0
"""A volume at the worker: sent once, and again where the worker has forgotten it.

Needs neither Slicer nor torch.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.worker.client import Job, Worker
from SRCSMSegmenterLib.worker.protocol import WorkerError

from ..boxes.key_frames import KeyFrames, boxes_to_json
from .organ_state import PointPrompt
from .tasks import UNKNOWN_SESSION

GRACE = 30.0
"""Seconds that the worker has to notice that it was cancelled: a large SAM takes some for a canvas,
and killing the worker costs the SAM, the volume and all embeddings."""


class Request:
    """Something the worker was asked.

    Attributes:
        client: which asked it.
        finished: True at the end, however it ended.
        error: where it failed or was cancelled (kind "Cancelled").
        reports: of "refine", what became of the organs (`tasks.refine`).
        chosen: boxes that were chosen, and what goes with them (`tasks.refine`), or None.
        labels: of "refine", (n, rows, columns), slice by slice; the client's own, to be read before
            anything else is asked.
    """

    def __init__(self, client: "RefineClient", done: Callable[["Request"], None]) -> None:
        self.client, self.finished = client, False
        self.error: WorkerError | None = None
        self.reports: list[dict[str, Any]] = []
        self.chosen: dict[str, Any] | None = None
        self.labels: np.ndarray | None = None
        self.job: Job | None = None
        self._done = done

    def cancel(self) -> None:
        """End it at once. The worker is given time to notice; what comes next waits for it."""
        self.job.cancel()
        self.end(WorkerError("Cancelled", "The refinement was cancelled; nothing was changed."))

    def end(self, error: WorkerError | None = None) -> None:
        """It is finished, unless it is already."""
        if not self.finished:
            self.finished, self.error = True, error
            self._done(self)


class RefineClient:
    """A volume with a SAM and a mosaic, at a worker."""

    def __init__(self, worker: Worker, volume: Volume, opening: Mapping[str, Any]) -> None:
        """Nothing is sent yet.

        Args:
            volume: not to be written to any more.
            opening: parameters of the task "refine" that open a session: sam, sam_kind, modality,
                mosaic, device.
        """
        self._worker, self._volume = worker, volume
        self._opening = {
            **opening,
            "session": uuid.uuid4().hex,
            **volume.geometry.to_json(),
        }
        self._sent: set[str] = set()
        # The session's last result, None if it is uncertain, and how many are being made.
        self._labels: np.ndarray | None = None
        self._awaited = 0

    def submit(
        self,
        task: str,
        frames: Sequence[KeyFrames],
        coarse: Callable[[int], np.ndarray | None],
        *,
        hints: Mapping[int, Mapping[int, Sequence[PointPrompt]]] | None = None,
        progress: Callable[[str, float], None] = lambda stage, fraction: None,
        log: Callable[[str], None] = lambda line: None,
        done: Callable[[Request], None] = lambda request: None,
        **parameters: Any,  # noqa: ANN401
    ) -> Request:
        """Ask for "embed" or "refine".

        Args:
            coarse: the coarse mask of the organ with a label, or None; asked where it is needed.
            hints: by label and slice number.
            progress, log: called until it is finished or cancelled.
            done: called once, when it is finished, in whatever way.
            parameters: others of the task, such as mask_threshold.
        """
        points = {
            str(value): {str(n): [list(hint) for hint in some] for n, some in slices.items()}
            for value, slices in (hints or {}).items()
        }
        message = self._opening | {"boxes": boxes_to_json(frames), "points": points, **parameters}
        request = Request(self, done)

        def unsent() -> dict[str, np.ndarray]:
            found = {} if "image" in self._sent else {"image": self._volume.array}
            for organ in frames:
                if (name := f"coarse_{organ.value}") not in self._sent:
                    self._sent.add(name)
                    if (mask := coarse(organ.value)) is not None:
                        found[name] = mask
            self._sent.add("image")
            return found

        def send(again: bool = True) -> None:
            # What changed is told of the last result if that is certain to be the worker's too.
            last = self._labels if self._awaited == 0 else None
            self._awaited += task == "refine"
            request.job = self._worker.submit(
                task,
                message | {"whole": last is None},
                unsent(),
                progress=lambda *told: request.finished or progress(*told),
                log=lambda line: request.finished or log(line),
                done=lambda job: end(job, last, again),
                grace=GRACE,
            )

        def end(job: Job, last: np.ndarray | None, again: bool) -> None:
            self._awaited -= task == "refine"
            if job.error is not None:
                self._labels = None
                # What a task was given before it said its first word is kept by the session, or
                # the whole session is lost, which the next reply tells.
                if job.error.kind != "Cancelled" or job.stage == "start":
                    self._sent.clear()
                if again and not request.finished and job.error.kind == UNKNOWN_SESSION:
                    send(again=False)
                    return
            else:
                request.chosen = job.reply.values["chosen"]
                if task == "refine":
                    self._labels = request.labels = _updated(job, last)
                    request.reports = job.reply.values["organs"]
            request.end(job.error)

        send()
        return request


def _updated(job: Job, last: np.ndarray | None) -> np.ndarray:
    """Return the labels after a reply, slice by slice.

    Args:
        last: the result that the reply tells changes of, (n, rows, columns), which is written to;
            None if the reply tells all.
    """
    labels, values = job.reply.arrays["labels"], job.reply.values
    if last is None:
        return np.array(np.moveaxis(labels, 2 - values["axis"], 0), order="C")
    updated = last.astype(labels.dtype, copy=False)
    updated[values["changed"]] = labels
    return updated
