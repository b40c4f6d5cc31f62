# SPDX-License-Identifier: Apache-2.0
"""Segmenting all frames of a sequence of the scene, without widgets. Main thread only.

    from SRCSMSegmenterLib.scene.sequence import segment_sequence
    segmentationNode = segment_sequence(volumeNode, model="abdomen-ct")

The result is a sequence of segmentations in the volume's own sequence browser, so that both are
played together, and a plot of the organs' volumes over the frames.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import slicer

from ..errors import VolumeError
from ..worker.client import Job, WorkerError
from ..worker.protocol import as_worker_error
from . import nodes
from .aside import Waiting, unshown
from .logic import (
    PLACING,
    READING,
    Run,
    RunNodes,
    ShowProgress,
    as_result,
    pace_of,
)
from .notes import result_notes
from .result import Result
from .sequence_results import place_sequence
from .worker_host import SegmentSettings, submit_segment


# As in logic.py, users' scripts call this with keyword arguments, each of which is documented.
def segment_sequence(
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    model: str = "abdomen-ct",
    sourceMatching: str = "auto",
    organs: Sequence[str] | None = None,
    modality: str | None = None,
    device: str = "auto",
    keepLargest: bool = True,
    refine: bool = False,
    progress: ShowProgress = lambda stage, fraction, secondsLeft: None,
    log: Callable[[str], None] = lambda line: None,
    done: Callable[["SequenceRun"], None] = lambda run: None,
    waiting: Waiting = unshown,
    wait: bool = True,
) -> "slicer.vtkMRMLSegmentationNode | SequenceRun":
    """Segment every frame of the sequence that a volume shows.

    Args:
        model, sourceMatching, organs, modality, device, keepLargest, refine, log, waiting,
            wait: see `logic.segment`.
        progress: called with the stage, the fraction of all frames that is done, and the seconds
            that are left, None while that cannot be told.
        done: called at the end, however it ends.

    Returns:
        The segmentation node that shows the browser's frame, or without `wait` the run.

    Raises:
        VolumeError: the volume shows no sequence, or cannot be segmented.
        WorkerError: with `wait`, what went wrong; its `remedy` says what to do.
    """
    settings = SegmentSettings(
        model,
        sourceMatching,
        organs,
        modality,
        device,
        keepLargest,
        probabilities=False,
        refine=refine,
    )
    run = SequenceRun(volumeNode, settings, progress, log, done, waiting)
    return run.wait() if wait else run


class SequenceRun(Run):
    """The segmentation of a sequence under way; see `Run`.

    Attributes:
        segmentationNode: shows the segmentation of the browser's frame, once it is there.
        editedSince: whether undoing may take edits along; frames are not watched.
    """

    editedSince = False

    def __init__(
        self,
        volume_node: slicer.vtkMRMLScalarVolumeNode,
        settings: SegmentSettings,
        progress: ShowProgress,
        log: Callable[[str], None],
        done: Callable[["SequenceRun"], None],
        waiting: Waiting,
    ) -> None:
        """Start; for the callbacks see `segment_sequence`."""
        self._count = nodes.frame_count(volume_node)
        if self._count == 0:
            raise VolumeError(f'"{volume_node.GetName()}" shows no sequence; segment it alone.')
        super().__init__(RunNodes(volume_node, 0), settings)
        self._volume = volume_node
        self._on_progress, self._on_log, self._on_done = progress, log, done
        self._waiting = waiting
        self._results: list[Result] = []
        self._notes: dict[str, list[int]] = {}
        self._submit()

    @property
    def _frame(self) -> int:
        """Number of the frame that is being segmented."""
        return len(self._results)

    def _submit(self) -> None:
        with self._waiting(READING) as aside:
            volume = nodes.read_volume(self._volume, self._frame, aside)
        self._geometry = volume.geometry
        self._pace = pace_of(volume.geometry, self._settings)
        self._job = submit_segment(
            volume, self._settings, progress=self._progress, log=self._on_log, done=self._take
        )

    def _progress(self, stage: str, fraction: float) -> None:
        if self._fault() and self._job is not None:
            self._job.cancel()  # nobody waits for it any more
            return
        later = self._count - self._frame - 1
        left = self._pace.seconds_left(stage, fraction, time.monotonic(), later)
        self._on_progress(stage, (self._frame + fraction) / self._count, left)

    def _fault(self) -> WorkerError | None:
        """Tell why the result has no place in the scene any more, if that is so."""
        if nodes.frame_count(self._volume) != self._count:
            return WorkerError(
                "VolumeError",
                f'The sequence of "{self._volume.GetName()}" was changed or removed while it was '
                "segmented; the result was dropped.",
            )
        return RunNodes(self._volume, self._frame).fault(self._geometry)

    def _take(self, job: Job) -> None:
        """Take the result of a frame; submit the next one, or place all of them."""
        try:
            if error := self._error_of(job, self._fault()):
                raise error
            self._pace.finish(time.monotonic())
            settings = asdict(self._settings) | {"frame": self._frame}
            result = as_result(job.reply, self._geometry, settings)
            for note in result_notes(job.reply.values):
                self._notes.setdefault(note, []).append(self._frame)
            self._results.append(result)
            if self._frame < self._count:
                self._submit()
                return
            with self._waiting(PLACING) as aside:
                self.change = place_sequence(self._results, self._volume, aside)
            self.segmentationNode = self.change.segmentation
            self._tell(self._all_notes())
        except Exception as error:  # to whoever waits; here it would end in the event loop
            self.error = as_worker_error(error)
        self.finished = True
        self._on_done(self)

    def _error_of(self, job: Job, fault: WorkerError | None) -> WorkerError | None:
        """See `Run._error_of`; an error of a frame names it."""
        error = super()._error_of(job, fault)
        if error is None or error is not job.error or error.kind == "Cancelled":
            return error
        return replace(error, sentence=f"Frame {self._frame}: {error.sentence}")

    def _all_notes(self) -> list[str]:
        """Write each note once, and of how many frames it is if not of all."""
        return [
            note
            if len(frames) == self._count
            else f"{note} ({len(frames)} of {self._count} frames, first in {frames[0]})"
            for note, frames in self._notes.items()
        ]
