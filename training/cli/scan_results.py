# SPDX-License-Identifier: Apache-2.0
"""The files that ``srcsm segment`` writes for a scan."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SRCSMSegmenterLib.endings import DICOM

from .outputs import report_os_errors, report_volume_errors
from .tables import organ_rows

if TYPE_CHECKING:
    from pydicom import Dataset

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.inference import Segmentation
    from SRCSMSegmenterLib.models.bundle import Description


@dataclass(frozen=True)
class PlannedScan:
    """A scan and the files that its results are written to; None for those not requested.

    Attributes:
        path: file, or folder of a DICOM series.
        confidence: probability of the chosen label.
        statistics: table of the organs.
        preview: picture.
    """

    path: Path
    labels: Path
    confidence: Path | None = None
    statistics: Path | None = None
    preview: Path | None = None

    @property
    def results(self) -> list[Path]:
        """All files that are written."""
        files = self.labels, self.confidence, self.statistics, self.preview
        return [path for path in files if path]

    @property
    def is_dicom(self) -> bool:
        """Whether the labels are written as a DICOM segmentation."""
        return self.labels.suffix.lower() == DICOM


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """A volume of a scan, its labels, and how they were found.

    Attributes:
        source_matching: whether the volume was matched to the network's source.
        refinement: what SAM changed, for the JSON output; None without SAM.
    """

    volume: "Volume"
    segmentation: "Segmentation"
    modality: str
    source_matching: bool
    refinement: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """The labelled volumes of a scan: one, or several if it is 4-D.

    Attributes:
        interval: seconds from one to the next, 0 if unknown.
        sources: headers of the DICOM series, for a DICOM segmentation.
        seconds: duration per stage.
    """

    frames: tuple[LabelledFrame, ...]
    interval: float
    sources: tuple["Dataset", ...]
    seconds: dict[str, float]


def write_results(
    planned: PlannedScan, scan: LabelledScan, model: "Description", sam: str | None
) -> None:
    """Write all requested files.

    Args:
        sam: name of the SAM that refined the labels, None if none did.

    Raises:
        VolumeError: a DICOM segmentation cannot hold the labels.
        OutputError: a file cannot be written.
    """
    import numpy as np

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.volume_io import Frames, write_frames, write_label_frames

    if planned.is_dicom:
        _write_dicom(planned, scan, model, sam)
    with report_volume_errors():
        if not planned.is_dicom:
            labels = tuple(frame.segmentation.labels for frame in scan.frames)
            write_label_frames(planned.labels, Frames(labels, scan.interval), model.labels)
        if planned.confidence:
            volumes = (
                Volume(frame.segmentation.confidence().astype(np.float32), frame.volume.geometry)
                for frame in scan.frames
            )
            write_frames(planned.confidence, Frames(tuple(volumes), scan.interval))
    if planned.statistics:
        _write_statistics(planned.statistics, planned.path, scan, model)
    if planned.preview:
        from ..evaluation.preview import write_preview

        first = scan.frames[0]
        which = f", the first of {len(scan.frames)} volumes" if len(scan.frames) > 1 else ""
        title = f"{planned.path.name}{which}: {model.name}"
        with report_os_errors(planned.preview.parent):
            write_preview(
                planned.preview, first.volume, first.segmentation.labels, model.labels, title
            )


def _write_dicom(
    planned: PlannedScan, scan: LabelledScan, model: "Description", sam: str | None
) -> None:
    from SRCSMSegmenterLib.dicom_segmentation import Algorithm, write_segmentation

    (frame,) = scan.frames
    parameters = {"source matching": "on" if frame.source_matching else "off"}
    if sam:
        parameters["refined by"] = sam
    algorithm = Algorithm(model.name, model.version, parameters)
    labels = frame.segmentation.labels
    with report_os_errors(planned.labels.parent):
        write_segmentation(planned.labels, labels, model.labels, scan.sources, algorithm)


def _write_statistics(
    path: Path, scan_path: Path, scan: LabelledScan, model: "Description"
) -> None:
    from SRCSMSegmenterLib.organ_statistics import organ_statistics, write_statistics

    rows = [
        organ_statistics(
            frame.volume,
            frame.segmentation.labels,
            model.labels,
            frame.segmentation.least_certain,
        )
        for frame in scan.frames
    ]
    with report_os_errors(path.parent):
        write_statistics(path, str(scan_path), rows)


def as_json(planned: PlannedScan, scan: LabelledScan, model: "Description") -> dict[str, Any]:
    """Return a scan's entry in the JSON output.

    A 4-D scan has an entry per volume under "frames" instead of its own organs.
    """
    frames = [
        {
            "organs": organ_rows(frame.segmentation, model.labels),
            "refinement": frame.refinement,
            "messages": frame.segmentation.messages,
        }
        for frame in scan.frames
    ]
    files = {"output": planned.labels, "confidence": planned.confidence}
    files |= {"statistics": planned.statistics, "preview": planned.preview}
    return {
        "input": str(planned.path),
        **{name: str(path) if path else None for name, path in files.items()},
        "modality": scan.frames[0].modality,
        "source_matching": scan.frames[0].source_matching,
        "slice_axis": "IJK"[scan.frames[0].volume.geometry.slice_axis],
        **(frames[0] if len(frames) == 1 else {"interval": scan.interval, "frames": frames}),
        "seconds": {stage: round(value, 3) for stage, value in scan.seconds.items()},
    }
