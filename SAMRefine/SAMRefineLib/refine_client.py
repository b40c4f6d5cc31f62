# SPDX-License-Identifier: Apache-2.0
"""A volume at the worker: sent once, and again where the worker has forgotten it.

Needs neither Slicer nor torch.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.worker_client import Job, Worker
from SRCSMSegmenterLib.worker_protocol import WorkerError

from .key_frames import KeyFrames, boxes_to_json
from .organs import Hint
from .tasks import UNKNOWN_SESSION


class Request:
    """Something the worker was asked.

    Attributes:
        finished: True at the end, however it ended.
    """

    def __init__(self) -> None:
        self.finished = False
        self.job: Job | None = None

    def cancel(self) -> None:
        """Stop it, by force where it does not listen; the worker is started again when needed."""
        self.job.cancel()


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
        geometry = volume.geometry
        self._opening = {
            **opening,
            "session": uuid.uuid4().hex,
            "size": list(geometry.size),
            "affine": geometry.affine.ravel().tolist(),
        }
        self._sent: set[str] = set()

    def submit(
        self,
        task: str,
        frames: Sequence[KeyFrames],
        coarse: Callable[[int], np.ndarray | None],
        *,
        hints: Mapping[int, Mapping[int, Sequence[Hint]]] | None = None,
        progress: Callable[[str, float], None] = lambda stage, fraction: None,
        log: Callable[[str], None] = lambda line: None,
        done: Callable[[Job], None] = lambda job: None,
        **parameters: Any,  # noqa: ANN401
    ) -> Request:
        """Ask for "embed" or "refine".

        Args:
            coarse: the coarse mask of the organ with a label, or None; asked where it is needed.
            hints: by label and slice number.
            done: called once, with the last job.
            parameters: others of the task, such as threshold.
        """
        points = {
            str(value): {str(n): [list(hint) for hint in some] for n, some in slices.items()}
            for value, slices in (hints or {}).items()
        }
        message = self._opening | {"boxes": boxes_to_json(frames), "points": points, **parameters}
        request = Request()

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
            request.job = self._worker.submit(
                task, message, unsent(), progress=progress, log=log,
                done=lambda job: end(job, again),
            )  # fmt: skip

        def end(job: Job, again: bool) -> None:
            if job.error is not None:
                self._sent.clear()  # who knows what arrived
                if again and _forgotten(job.error):
                    send(again=False)
                    return
            request.finished = True
            done(job)

        send()
        return request


def _forgotten(error: WorkerError) -> bool:
    return error.kind == UNKNOWN_SESSION
