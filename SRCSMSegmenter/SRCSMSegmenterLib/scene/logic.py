# SPDX-License-Identifier: Apache-2.0
"""Segmenting volumes of the scene from Slicer, without widgets.

    from SRCSMSegmenterLib.scene.logic import segment
    segmentationNode = segment(volumeNode, model="abdomen-ct")

The worker process (worker_host.py) computes. Main thread only.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import slicer

from ..blocks import ProbabilityBlock
from ..errors import BundleError, VolumeError
from ..geometry import Geometry, Volume
from ..models.catalogue import find_model, read_card
from ..slices_to_check import slices_to_check
from ..worker.client import Job, Reply, WorkerError, cancelled
from ..worker.protocol import as_worker_error
from . import nodes
from .aside import Waiting, unshown
from .changes import SceneChange
from .input_warnings import dicom_modality, input_warnings
from .notes import result_notes
from .pace import Pace
from .result import Result, SegmentedOrgan
from .results import check_target, place
from .worker_host import SegmentSettings, submit_segment, wait_for

ShowProgress = Callable[[str, float, float | None], None]
"""Function called with the stage ("load", "prepare", "network", "resample"), the fraction of the
whole that is done, and the seconds that are left, None while that cannot be told."""


READING = "Reading the volume"
PLACING = "Putting the organs into the scene"
"""What is going on, as `Waiting` shows it."""


# The panel and users' scripts call this with keyword arguments, each of which is documented; that
# is why there are more than eight.
def segment(
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    model: str = "abdomen-ct",
    sourceMatching: str = "auto",
    organs: Sequence[str] | None = None,
    modality: str | None = None,
    device: str = "auto",
    keepLargest: bool = True,
    outputSegmentation: slicer.vtkMRMLSegmentationNode | None = None,
    frame: int | None = None,
    refine: bool = False,
    progress: ShowProgress = lambda stage, fraction, secondsLeft: None,
    log: Callable[[str], None] = lambda line: None,
    done: Callable[["SegmentationRun"], None] = lambda run: None,
    waiting: Waiting = unshown,
    wait: bool = True,
) -> "slicer.vtkMRMLSegmentationNode | SegmentationRun":
    """Segment a volume of the scene.

    Args:
        model: name of a shipped network, or folder of another.
        sourceMatching: "on", "off" or "auto": on if the modality is not the network's.
        organs: names of those wanted; None for all that the network knows.
        modality: "CT" or "MR"; None takes what DICOM says, else guesses.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        keepLargest: keep only one piece of every organ; switch it off for organs that are
            several pieces.
        outputSegmentation: to be updated (`results.place`); None makes a new one.
        frame: of the sequence that the volume shows, from 0; None for the one shown.
        refine: let SAM redraw the organs, as ``srcsm segment --refine`` does; needs SAM Refine.
        progress: see `ShowProgress`.
        log: called with lines for the user.
        done: called at the end, however it ends.
        waiting: shows the steps that read and change the scene, if they take long.
        wait: until it is done; Slicer goes on drawing meanwhile.

    Returns:
        The segmentation node, or without `wait` the run.

    Raises:
        VolumeError: the volume cannot be segmented, or the output lies elsewhere.
        BundleError: nothing is there to refine with.
        WorkerError: with `wait`, what went wrong; its `remedy` says what to do.
    """
    settings = SegmentSettings(
        model, sourceMatching, organs, modality, device, keepLargest, refine=refine
    )
    run_nodes = RunNodes(volumeNode, frame, outputSegmentation)
    run = SegmentationRun(run_nodes, settings, progress, log, done, waiting)
    return run.wait() if wait else run


@dataclass(frozen=True, eq=False)
class RunNodes:
    """Nodes of the scene that a run reads and writes.

    Attributes:
        frame: of the sequence that the volume shows; None for the one shown.
        segmentation: to be updated; None makes a new one.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    frame: int | None = None
    segmentation: slicer.vtkMRMLSegmentationNode | None = None

    def fault(self, geometry: Geometry) -> WorkerError | None:
        """Tell why a result on this grid has no place in the scene any more, if that is so."""
        for node, what in ((self.volume, "volume"), (self.segmentation, "output segmentation")):
            if node is not None and node.GetScene() is None:
                return WorkerError(
                    "VolumeError",
                    f'The {what} "{node.GetName()}" was removed from the scene while it was '
                    "segmented; the result was dropped.",
                )
        try:
            node = nodes.frame_node(self.volume, self.frame)
            same = nodes.node_geometry(node).matches(geometry)
        except VolumeError:
            same = False
        if same:
            return None
        return WorkerError(
            "VolumeError",
            f'The volume "{self.volume.GetName()}" was changed while it was segmented; the '
            "result was dropped.",
            "Segment it again.",
        )


class Run:
    """A run under way. The scene changes once, when the result is complete.

    Attributes:
        finished: True at the end, however it ended.
        error: what went wrong; its kind is "Cancelled" if the run was cancelled.
        messages: what the user should know of the input and the result, a sentence each.
        segmentationNode: the result, once it is there.
        change: what the result changed in the scene (`undo`).
    """

    def __init__(self, run_nodes: RunNodes, settings: SegmentSettings) -> None:
        modality = settings.modality or dicom_modality(run_nodes.volume)
        self._settings = replace(settings, modality=modality)
        self.finished = False
        self.error: WorkerError | None = None
        self.messages = run_warnings(run_nodes, self._settings)
        self.segmentationNode: slicer.vtkMRMLSegmentationNode | None = None
        self.change: SceneChange | None = None
        self._job: Job | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Stop the run; the scene stays as it is."""
        self._cancelled = True
        self._job.cancel()

    def _tell(self, notes: Sequence[str]) -> None:
        """Add notes on the result to the messages, each once: some were warnings of the input."""
        self.messages = list(dict.fromkeys([*self.messages, *notes]))

    def _error_of(self, job: Job, fault: WorkerError | None) -> WorkerError | None:
        """Return why there is no result; of a run that the user cancelled it is only that.

        Args:
            job: that has ended.
            fault: why its result has no place in the scene any more, if that is so.
        """
        if self._cancelled:
            return cancelled()
        return fault or job.error

    def wait(self) -> slicer.vtkMRMLSegmentationNode:
        """Wait until the run is finished, while Slicer goes on drawing.

        Raises:
            WorkerError: it failed or was cancelled.
        """
        while not self.finished:
            wait_for(self._job)
        if self.error is not None:
            raise self.error
        return self.segmentationNode

    def undo(self) -> None:
        """Take the result out of the scene again; see `SceneChange`."""
        if self.change is not None:
            self.change.undo()


class SegmentationRun(Run):
    """The segmentation of a volume under way; see `Run`."""

    def __init__(
        self,
        run_nodes: RunNodes,
        settings: SegmentSettings,
        progress: ShowProgress,
        log: Callable[[str], None],
        done: Callable[["SegmentationRun"], None],
        waiting: Waiting,
    ) -> None:
        """Start; for the callbacks see `segment`."""
        with waiting(READING) as aside:
            volume = nodes.read_volume(run_nodes.volume, run_nodes.frame, aside)
        if run_nodes.segmentation is not None:
            check_target(run_nodes.segmentation, run_nodes.volume, volume.geometry)
        super().__init__(run_nodes, settings)
        self._nodes, self._geometry = run_nodes, volume.geometry
        self._on_progress, self._on_done, self._waiting = progress, done, waiting
        self._pace = pace_of(volume.geometry, self._settings)
        self._job = submit_segment(
            volume, self._settings, progress=self._progress, log=log, done=self._finish
        )

    @property
    def editedSince(self) -> bool:
        """Whether segments were changed, added or removed after the result was placed."""
        return self.change is not None and self.change.edited_since

    def _progress(self, stage: str, fraction: float) -> None:
        if self._nodes.fault(self._geometry) and self._job is not None:
            self._job.cancel()  # nobody waits for it any more
            return
        left = self._pace.seconds_left(stage, fraction, time.monotonic())
        self._on_progress(stage, fraction, left)

    def _finish(self, job: Job) -> None:
        run_nodes = self._nodes
        try:
            if error := self._error_of(job, run_nodes.fault(self._geometry)):
                raise error
            self._pace.finish(time.monotonic())
            settings = asdict(self._settings) | {"frame": run_nodes.frame}
            with self._waiting(PLACING) as aside:
                result = aside(lambda: as_result(job.reply, self._geometry, settings), 0.1)
                self.change = place(result, run_nodes.volume, run_nodes.segmentation, aside)
            self.segmentationNode = self.change.segmentation
            self._tell(result_notes(job.reply.values))
        except Exception as error:  # to whoever waits; here it would end in the event loop
            self.error = as_worker_error(error)
        self.finished = True
        self._on_done(self)


def pace_of(geometry: Geometry, settings: SegmentSettings) -> Pace:
    """Start the pace of a run; the network's windows cover millilitres, not voxels."""
    kind = (settings.model, settings.device, settings.refine)
    return Pace(kind, geometry.voxel_ml * math.prod(geometry.size))


def as_result(reply: Reply, geometry: Geometry, settings: dict) -> Result:
    """Convert a reply to the task "segment" to a `Result`.

    Args:
        settings: what the user asked for, kept with the segmentation.
    """
    values = reply.values
    model, labels = values["model"], values["labels"]
    probabilities = {
        label["name"]: ProbabilityBlock(
            tuple(values["first"][str(label["value"])]),
            reply.arrays[f"probability_{label['value']}"],
        )
        for label in labels
        if "first" in values
    }
    used = {key: values[key] for key in ("modality", "source_matching", "device")}
    return Result(
        Volume(reply.arrays["labels"], geometry),
        tuple(
            SegmentedOrgan(
                label["name"],
                label["value"],
                tuple(label["color"]),
                label["terminology"],
                values["volumes_ml"][label["name"]],
                _to_check(values["least_certain"][label["name"]], geometry),
            )
            for label in labels
        ),
        {name: block.whole(geometry.shape) for name, block in probabilities.items()},
        {
            "Model": model["name"],
            "ModelVersion": model["version"],
            "ModelIdentity": model["identity"],
            "Settings": json.dumps({**settings, "used": used}),
            "Date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def run_warnings(run_nodes: RunNodes, settings: SegmentSettings) -> list[str]:
    """List the input warnings; none if the model's card is not on this machine."""
    try:
        card = read_card(find_model(settings.model))
    except BundleError:
        return []  # a remote worker may know it; if not, it says so
    return input_warnings(
        run_nodes.volume, card, settings.source_matching, settings.modality, run_nodes.frame
    )


def _to_check(
    ranked: Sequence[tuple[int, float]], geometry: Geometry
) -> tuple[tuple[int, float], ...]:
    """Choose the slices to check among all, (slice, uncertainty in mm), the least certain first."""
    uncertainty = dict(ranked)
    chosen = slices_to_check(uncertainty, float(geometry.spacing[geometry.slice_axis]))
    return tuple((number, uncertainty[number]) for number in chosen)
