# SPDX-License-Identifier: Apache-2.0
"""Segmenting volumes of the scene, and folders of files, from Slicer; without widgets.

    from SRCSMSegmenterLib.scene.logic import segment
    segmentationNode = segment(volumeNode, model="abdomen-ct")

The computing is done by one worker process (worker/client.py), which the panel and SAM Refine use
too. Main thread only.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from ..endings import READABLE, SEGMENTATION, ending, stem
from ..errors import BundleError, SRCSMError, VolumeError
from ..geometry import Geometry, Volume
from ..modality import guess_modality
from ..models.catalogue import ModelCard, find_model, read_card
from ..terminology import Segment, segment_for
from ..worker.client import Job, Reply, Worker, WorkerError
from ..worker.protocol import as_worker_error
from . import nodes
from .nodes import Organ, Result
from .samples import register_sample_data as register_sample_data

# Beyond these an input looks odd.
FEW_INTENSITIES = 32
SMALLEST_MM = 40.0
"""An organ of the trunk does not fit into less."""
LARGEST_MM = 900.0
COARSEST_MM = 12.0
TURNED_DEGREES = 30.0
"""Training turns scans by up to 20 degrees."""

TASKS = ("SRCSMSegmenterLib.worker.tasks", "SAMRefineLib.refine.tasks")
PUMP_MS = 20

Progress = Callable[[str, float, float | None], None]
"""Called with the stage ("load", "prepare", "network", "resample"), the fraction of the whole that
is done, and the seconds that are left, None while that cannot be told."""


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
    progress: Progress = lambda stage, fraction, secondsLeft: None,
    log: Callable[[str], None] = lambda line: None,
    done: Callable[["SegmentationRun"], None] = lambda run: None,
    wait: bool = True,
) -> "slicer.vtkMRMLSegmentationNode | SegmentationRun":
    """Segment a volume of the scene.

    Args:
        model: name of a shipped network, or folder of another.
        sourceMatching: "on", "off" or "auto": on where the modality is not the network's.
        organs: names of those wanted; None for all that the network knows.
        modality: "CT" or "MR"; None takes what DICOM says, else guesses.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        keepLargest: keep the largest piece of every organ alone; off for organs that are
            several pieces.
        outputSegmentation: to be updated (`nodes.place`); None makes a new one.
        frame: of the sequence that the volume shows, from 0; None for the one shown.
        log: called with lines for the user.
        done: called at the end, however it ends.
        wait: until it is done; Slicer goes on drawing meanwhile.

    Returns:
        The segmentation node, or without `wait` the run.

    Raises:
        VolumeError: the volume cannot be segmented, or the output lies elsewhere.
        WorkerError: with `wait`, what went wrong; its `remedy` says what to do.
    """
    run = SegmentationRun(
        volumeNode,
        {
            "model": model,
            "source_matching": sourceMatching,
            "organs": None if organs is None else list(organs),
            "modality": modality or dicom_modality(volumeNode),
            "device": device,
            "keep_largest": keepLargest,
        },
        outputSegmentation,
        frame,
        progress,
        log,
        done,
    )
    return run.wait() if wait else run


class SegmentationRun:
    """A segmentation under way. The scene changes once, when the result is complete.

    Attributes:
        finished: True at the end, however it ended.
        error: what went wrong; kind "Cancelled" where it was cancelled.
        messages: what the user should know of the input and the result, a sentence each.
        segmentationNode: the result, once it is there.
        change: the way back (`undo`).
    """

    def __init__(
        self,
        volume_node: slicer.vtkMRMLScalarVolumeNode,
        parameters: dict[str, Any],
        segmentation_node: slicer.vtkMRMLSegmentationNode | None,
        frame: int | None,
        progress: Progress,
        log: Callable[[str], None],
        done: Callable[["SegmentationRun"], None],
    ) -> None:
        """Start; see `segment`. `parameters` are those of the task."""
        volume = nodes.read_volume(volume_node, frame)
        if segmentation_node is not None:
            nodes.check_target(segmentation_node, volume_node, volume.geometry)
        self.finished = False
        self.error: WorkerError | None = None
        self.messages = warnings_for(volume_node, frame, parameters)
        self.segmentationNode: slicer.vtkMRMLSegmentationNode | None = None
        self.change: nodes.Change | None = None
        self._volume_node, self._frame, self._geometry = volume_node, frame, volume.geometry
        self._target, self._parameters = segmentation_node, parameters
        self._on_progress, self._on_done = progress, done
        self._started = time.monotonic()
        self._worker = worker()
        self._job: Job | None = None
        self._job = submit_segment(
            self._worker, volume, parameters, progress=self._progress, log=log, done=self._finish
        )

    def cancel(self) -> None:
        """Stop it; the scene stays as it is."""
        self._job.cancel()

    def wait(self) -> slicer.vtkMRMLSegmentationNode:
        """Until it is finished; Slicer goes on drawing.

        Raises:
            WorkerError: it failed or was cancelled.
        """
        wait_for(self._worker, self._job)
        if self.error is not None:
            raise self.error
        return self.segmentationNode

    def undo(self) -> None:
        """Take the result out of the scene again; see `nodes.Change`."""
        if self.change is not None:
            self.change.undo()

    def _progress(self, stage: str, fraction: float) -> None:
        if self._lost() and self._job is not None:
            self._job.cancel()  # nobody waits for it any more
            return
        if stage == "load":
            self._started = time.monotonic()
        elapsed = time.monotonic() - self._started
        self._on_progress(stage, fraction, seconds_left(elapsed, fraction))

    def _finish(self, job: Job) -> None:
        try:
            if error := self._lost() or job.error:
                raise error
            result = as_result(job.reply, self._geometry, self._parameters, self._frame)
            self.change = nodes.place(result, self._volume_node, self._target)
            self.segmentationNode = self.change.segmentation
            self.messages += [*job.reply.values["messages"], *_absent(result)]
        except Exception as error:  # to whoever waits; here it would end in the event loop
            self.error = as_worker_error(error)
        self.finished = True
        self._on_done(self)

    def _lost(self) -> WorkerError | None:
        """Why the result has no place in the scene any more."""
        for node, what in ((self._volume_node, "volume"), (self._target, "output segmentation")):
            if node is not None and node.GetScene() is None:
                return WorkerError(
                    "VolumeError",
                    f'The {what} "{node.GetName()}" was removed from the scene while it was '
                    "segmented; the result was dropped.",
                )
        try:
            node = nodes.frame_node(self._volume_node, self._frame)
            same = nodes.node_geometry(node).matches(self._geometry)
        except VolumeError:
            same = False
        if same:
            return None
        return WorkerError(
            "VolumeError",
            f'The volume "{self._volume_node.GetName()}" was changed while it was segmented; the '
            "result was dropped.",
            "Segment it again.",
        )


def seconds_left(elapsed: float, fraction: float) -> float | None:
    """Time left if it goes on at this pace; None while too little is done to tell."""
    return None if fraction < 0.05 else elapsed * (1 - fraction) / fraction


def as_result(
    reply: Reply, geometry: Geometry, parameters: dict[str, Any], frame: int | None
) -> Result:
    """A reply to the task "segment" as `nodes.place` takes it, with what it came from."""
    values, chances = reply.values, reply.arrays["probabilities"]
    model, labels = values["model"], values["labels"]
    used = {key: values[key] for key in ("modality", "source_matching", "device")}
    return Result(
        Volume(reply.arrays["labels"], geometry),
        tuple(
            Organ(
                label["name"],
                label["value"],
                tuple(label["color"]),
                label["terminology"],
                values["volumes_ml"][label["name"]],
                tuple((k, mm) for k, mm in values["least_certain"][label["name"]]),
            )
            for label in labels
        ),
        {label["name"]: chances[label["value"]] for label in labels},
        {
            "Model": model["name"],
            "ModelVersion": model["version"],
            "ModelIdentity": model["identity"],
            "Settings": json.dumps({**parameters, "frame": frame, "used": used}),
            "Date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _absent(result: Result) -> list[str]:
    names = [organ.name.replace("_", " ") for organ in result.organs if organ.volume_ml == 0]
    return [f"Not found: {', '.join(names)}."] if names else []


# --- files


@dataclass(frozen=True)
class FileResult:
    """What became of one file of `segment_folder`: `output`, or `error`."""

    input: Path
    output: Path | None = None
    error: WorkerError | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    messages: tuple[str, ...] = ()


def segment_folder(
    inputFolder: str | Path,
    outputFolder: str | Path,
    model: str = "abdomen-ct",
    sourceMatching: str = "auto",
    organs: Sequence[str] | None = None,
    modality: str | None = None,
    device: str = "auto",
    keepLargest: bool = True,
    progress: Callable[[Path, str, float], None] = lambda path, stage, fraction: None,
) -> list[FileResult]:
    """Segment every scan of a folder into NAME.seg.nrrd files; the scene is not touched.

    The labels are those that `segment` finds in the same files loaded into Slicer, and those of
    ``srcsm segment``. A scan that cannot be segmented does not keep the others from being.

    Args:
        inputFolder: its .nii, .nii.gz, .nrrd, .nhdr, .mha and .mhd files, but for .seg.nrrd.
        outputFolder: made where it does not exist.
        progress: called with the file, the stage and the fraction of its work that is done.

    Raises:
        VolumeError: no scans, or two that would be written to one file.
    """
    folder, output = Path(inputFolder), Path(outputFolder)
    scans = {}
    for path in sorted(folder.glob("*")):
        if ending(path) not in READABLE:
            continue
        target = output / f"{stem(path)}{SEGMENTATION}"
        if target in scans:
            raise VolumeError(f"{scans[target]} and {path} would be one file; rename one of them.")
        scans[target] = path
    if not scans:
        raise VolumeError(f"{folder} holds no scans; give a folder of {', '.join(READABLE)} files.")
    output.mkdir(parents=True, exist_ok=True)
    parameters = {
        "model": model,
        "source_matching": sourceMatching,
        "organs": None if organs is None else list(organs),
        "modality": modality,
        "device": device,
        "keep_largest": keepLargest,
        "probabilities": False,
    }
    return [
        _segment_file(path, target, parameters, partial(progress, path))
        for target, path in scans.items()
    ]


def _segment_file(
    path: Path,
    target: Path,
    parameters: dict[str, Any],
    progress: Callable[[str, float], None],
) -> FileResult:
    from ..volume_io import read_volume, write_labels  # SimpleITK, when needed

    try:
        volume = read_volume(path)
        job = submit_segment(worker(), volume, parameters, progress=progress)
        wait_for(worker(), job)
        reply = job.wait()
        labels = Volume(reply.arrays["labels"], volume.geometry)
        write_labels(target, labels, [_segment(label) for label in reply.values["labels"]])
    except SRCSMError as error:
        return FileResult(path, error=as_worker_error(error))
    values = reply.values
    return FileResult(path, target, None, values["volumes_ml"], tuple(values["messages"]))


def _segment(label: dict[str, Any]) -> Segment:
    known = segment_for(label["name"], label["value"])
    return replace(known, color=tuple(label["color"]))


# --- the worker

_worker: Worker | None = None
_timer: object = None


def worker() -> Worker:
    """The worker of this Slicer. Where there is Qt, a timer pumps it."""
    if _worker is None:
        use_worker()
    return _worker


def use_worker(address: str | None = None, token: str = "") -> None:
    """Compute in a process of this machine, or by ``srcsm worker --listen`` on another.

    Args:
        address: "host:port", such as the near end of an SSH tunnel; None for this machine.
        token: which that worker printed.
    """
    global _worker, _timer
    stop_worker()
    environment = slicer.util.startupEnvironment() if hasattr(slicer, "app") else None
    tasks = [name for name in TASKS if _importable(name)]
    _worker = Worker(tasks, environment=environment, address=address, token=token)
    _timer = _started_timer(_worker.pump)


def stop_worker() -> None:
    """End the worker and what it is doing; the next segmentation starts it again."""
    global _worker, _timer
    if _timer is not None:
        _timer.stop()
    if _worker is not None:
        _worker.stop()
    _worker = _timer = None


def submit_segment(
    to: Worker, volume: Volume, parameters: dict[str, Any], **callbacks: Callable
) -> Job:
    """Submit the task "segment"; `parameters` are the task's, but for the grid."""
    parameters = parameters | volume.geometry.to_json()
    return to.submit("segment", parameters, {"image": volume.array}, **callbacks)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _started_timer(call: Callable[[], None]) -> object:
    try:
        import qt
    except ImportError:
        return None
    timer = qt.QTimer()
    timer.setInterval(PUMP_MS)
    timer.connect("timeout()", call)
    timer.start()
    return timer


def wait_for(on: Worker, job: Job) -> None:
    """Until a job is finished; Slicer goes on drawing."""
    try:
        while not job.finished:
            on.pump(PUMP_MS / 1000)
            if hasattr(slicer, "app"):
                slicer.app.processEvents()
    except KeyboardInterrupt:
        job.cancel()
        raise


# --- what looks odd


def warnings_for(
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    frame: int | None,
    parameters: dict[str, Any],
) -> list[str]:
    """`input_warnings` for a task's parameters; none where the model's card is not here."""
    try:
        card = read_card(find_model(parameters["model"]))
    except BundleError:
        return []  # a remote worker may know it; if not, it says so
    return input_warnings(
        volume_node, card, parameters["source_matching"], parameters["modality"], frame
    )


def input_warnings(
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    card: ModelCard,
    source_matching: str = "auto",
    modality: str | None = None,
    frame: int | None = None,
) -> list[str]:
    """What about a volume does not look like what a model expects, a sentence each.

    Args:
        source_matching, modality, frame: see `segment`.
    """
    node = nodes.frame_node(volume_node, frame)
    geometry, image = nodes.node_geometry(node), node.GetImageData()
    low, high = image.GetScalarRange()
    stated = modality or dicom_modality(volume_node)
    seen = stated or guess_modality(np.array(low))
    found = []
    if high - low < FEW_INTENSITIES and "float" not in image.GetScalarTypeAsString():
        found.append(f"The volume has only {high - low + 1:.0f} intensities; is it a label map?")
    elif seen not in ("CT", "MR"):
        found.append(f"DICOM says {seen}; the networks know CT and MR.")
    elif seen == "CT" and guess_modality(np.array(low)) != "CT":
        found.append(f"CT without air (the minimum is {low:g}): are these Hounsfield units?")
    elif seen == "MR" and low < 0:
        found.append(f"MR with negative intensities (down to {low:g}): was it rescaled?")
    if seen != card.modality and source_matching == "off":
        found.append(
            f"This looks like {seen}, the network learned from {card.modality}: switch source "
            "matching on, or leave it automatic."
        )
    extent = geometry.size * geometry.spacing
    if extent.min() < SMALLEST_MM:
        found.append(
            f"The volume is only {extent.min():.0f} mm thick; organs that are cut off are often "
            "missed."
        )
    if extent.max() > LARGEST_MM:
        found.append(
            f"The volume is {extent.max():.0f} mm long; crop it to the organs to be faster and to "
            "find fewer of them in wrong places."
        )
    if geometry.spacing.max() > COARSEST_MM:
        found.append(
            f"The slices are {geometry.spacing.max():.0f} mm apart; expect coarse results."
        )
    if turned_degrees(volume_node) > TURNED_DEGREES:
        found.append(
            "A transform turns the volume. The network sees it as it is stored: if that is not how "
            "the patient lay, harden the transform first."
        )
    return found


def dicom_modality(volume_node: slicer.vtkMRMLScalarVolumeNode) -> str | None:
    """What DICOM says of a volume, such as "CT"; None where it was not loaded from DICOM."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volume_node)
    return (item and hierarchy.GetItemAttribute(item, "DICOM.Modality")) or None


def turned_degrees(volume_node: slicer.vtkMRMLScalarVolumeNode) -> float:
    """By how much the transforms above a volume turn it at its middle, mirroring counted as 180."""
    geometry = nodes.node_geometry(volume_node)
    moved = []
    for point in (geometry.centre, *(geometry.centre + np.eye(3))):
        world = [0.0, 0.0, 0.0]
        volume_node.TransformPointToWorld(point, world)
        moved.append(world)
    u, _, vt = np.linalg.svd((np.array(moved[1:]) - moved[0]).T)
    if np.linalg.det(u @ vt) < 0:
        return 180.0
    return float(np.degrees(np.arccos(np.clip((np.trace(u @ vt) - 1) / 2, -1, 1))))
