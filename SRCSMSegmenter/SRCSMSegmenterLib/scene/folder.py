# SPDX-License-Identifier: Apache-2.0
"""Segmenting a folder of files from Slicer, without its scene. Main thread only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..endings import READABLE, SEGMENTATION, scans_in, stem
from ..errors import SRCSMError, VolumeError
from ..geometry import Volume
from ..terminology import Segment, segment_for
from ..worker.protocol import WorkerError, as_worker_error
from .notes import result_notes
from .worker_host import SegmentSettings, check_refinement, submit_segment, wait_for


@dataclass(frozen=True)
class FileResult:
    """Result of one file of `segment_folder`: `output`, or `error`.

    Attributes:
        volumes_ml: by organ.
        messages: what the user should know of the file and its result, a sentence each.
    """

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
    refine: bool = False,
    progress: Callable[[Path, str, float], None] = lambda path, stage, fraction: None,
) -> list[FileResult]:
    """Segment every scan of a folder into NAME.seg.nrrd files; the scene is not touched.

    The labels are those that `logic.segment` finds in the same files loaded into Slicer, and those
    of ``srcsm segment``; with `refine`, of ``srcsm segment --refine``. A scan that fails does not
    stop the rest; its error is in its FileResult.

    Args:
        inputFolder: its .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd and .hdr files, but for .seg.nrrd.
        outputFolder: made if it does not exist.
        model, sourceMatching, organs, modality, device, keepLargest, refine: see `logic.segment`.
        progress: called with the file, the stage and the fraction of its work that is done.

    Raises:
        VolumeError: no scans, or two that would be written to one file.
        BundleError: nothing is there to refine with.
    """
    folder, output = Path(inputFolder), Path(outputFolder)
    if refine:
        check_refinement()
    scans = _scans(folder, output)
    output.mkdir(parents=True, exist_ok=True)
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
    return [
        _segment_file(path, target, settings, partial(progress, path))
        for target, path in scans.items()
    ]


def _scans(folder: Path, output: Path) -> dict[Path, Path]:
    """Map each output file to the scan it is made from."""
    scans: dict[Path, Path] = {}
    for path in scans_in(folder):
        target = output / f"{stem(path)}{SEGMENTATION}"
        if target in scans:
            raise VolumeError(f"{scans[target]} and {path} would be one file; rename one of them.")
        scans[target] = path
    if not scans:
        raise VolumeError(f"{folder} holds no scans; give a folder of {', '.join(READABLE)} files.")
    return scans


def _segment_file(
    path: Path, target: Path, settings: SegmentSettings, progress: Callable[[str, float], None]
) -> FileResult:
    from ..volume_io import read_volume, write_labels  # SimpleITK, when needed

    try:
        volume = read_volume(path)
        if settings.modality is None:
            settings = replace(settings, modality=volume.modality)
        job = submit_segment(volume, settings, progress=progress)
        wait_for(job)
        reply = job.wait()
        labels = Volume(reply.arrays["labels"], volume.geometry)
        write_labels(target, labels, [_segment(label) for label in reply.values["labels"]])
    except SRCSMError as error:
        return FileResult(path, error=as_worker_error(error))
    values = reply.values
    notes = (*volume.remarks, *result_notes(values))
    return FileResult(path, target, None, values["volumes_ml"], notes)


def _segment(label: dict[str, Any]) -> Segment:
    """Build the segment of a label in a reply (worker/tasks.py)."""
    known = segment_for(label["name"], label["value"])
    return replace(known, color=tuple(label["color"]))
