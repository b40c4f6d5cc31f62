# SPDX-License-Identifier: Apache-2.0
"""Stages of ``srcsm segment``: reading a scan, labelling it, writing the results."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from SRCSMSegmenterLib.endings import ending
from SRCSMSegmenterLib.errors import VolumeError

from .console import stage_display
from .outputs import report_os_errors
from .scan_results import LabelledFrame, LabelledScan, PlannedScan, as_json, write_results
from .segmented import SegmentedRecord
from .tables import refinement_rows

if TYPE_CHECKING:
    from pydicom import Dataset

    from SAMRefineLib.sam.models import SamModel
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.inference import Segmentation
    from SRCSMSegmenterLib.models.bundle import ModelBundle
    from SRCSMSegmenterLib.volume_io import Frames


@dataclass(frozen=True, eq=False)
class Models:
    """The models in use, and the device they compute on."""

    bundle: "ModelBundle"
    sam: "SamModel | None"
    device: str


@dataclass(frozen=True, eq=False)
class ReadScan:
    """A scan as it was read.

    Attributes:
        sources: headers of the DICOM series, for a DICOM segmentation.
        seconds: duration of the reading.
    """

    frames: "Frames"
    sources: tuple["Dataset", ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class SegmentStages:
    """The stages of ``srcsm segment``.

    Attributes:
        arguments: options of the command.
        models: returns the models, and loads them when it is first called; to read a scan takes
            none.
        record: of the folder that the results are written to, if they are.
    """

    arguments: argparse.Namespace
    models: Callable[[], Models]
    record: SegmentedRecord | None = None

    def read(self, planned: PlannedScan) -> ReadScan:
        """Read a scan, and check that its results can be written to the requested files.

        Raises:
            VolumeError: see `volume_io.read_frames` and `dicom_segmentation.source_headers`.
        """
        from SRCSMSegmenterLib.volume_io import read_frames

        started = time.perf_counter()
        series, sources = self.arguments.series, ()
        frames = read_frames(planned.path, series)
        if len(frames.volumes) > 1:
            _require_nifti(planned, len(frames.volumes))
        if planned.is_dicom:
            from SRCSMSegmenterLib.dicom_segmentation import source_headers

            sources = source_headers(planned.path, series, frames.volumes[0].geometry)
        return ReadScan(frames, tuple(sources), time.perf_counter() - started)

    def label(self, planned: PlannedScan, scan: ReadScan) -> LabelledScan:
        """Segment every volume of a scan and, if there is a SAM, refine it.

        Raises:
            VolumeError, SourceMatchingError, DeviceError: see `inference.segment`.
        """
        seconds = {"read": scan.seconds}
        frames, count = [], len(scan.frames.volumes)
        modality = self.arguments.modality or _modality_of_all(scan.frames.volumes)
        for number, volume in enumerate(scan.frames.volumes):
            title = planned.path.name + (f", volume {number + 1} of {count}" if count > 1 else "")
            frames.append(self._label(title, volume, modality, seconds))
        return LabelledScan(tuple(frames), scan.frames.interval, scan.sources, seconds)

    def _label(
        self, title: str, volume: "Volume", given: str | None, seconds: dict[str, float]
    ) -> LabelledFrame:
        """Segment a volume; add the durations of the stages to `seconds`.

        Args:
            given: modality; None if the volume decides it.
        """
        from SRCSMSegmenterLib.inference import segment
        from SRCSMSegmenterLib.modality import modality_of
        from SRCSMSegmenterLib.source_matching import wanted

        arguments, models = self.arguments, self.models()
        bundle = models.bundle
        modality = modality_of(volume, given)
        matching = wanted(arguments.source_matching, modality, bundle.description.rule)
        with stage_display(title) as show:
            segmentation = segment(
                volume,
                bundle,
                modality=given,
                source_matching=matching,
                device=models.device,
                keep_largest=arguments.keep_largest,
                progress=show,
            )
        refinement = None
        if models.sam is not None:
            segmentation, refinement = self._refined(volume, segmentation, modality)
        for stage, duration in segmentation.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + duration
        return LabelledFrame(volume, segmentation, modality, matching, refinement)

    def _refined(
        self, volume: "Volume", segmentation: "Segmentation", modality: str
    ) -> tuple["Segmentation", dict[str, Any]]:
        """Refine a segmentation with SAM; return it, and the change of each organ."""
        from SAMRefineLib.refine.after_segmentation import refine_segmentation

        models, keep_largest = self.models(), self.arguments.keep_largest
        labels = models.bundle.description.labels
        with stage_display("refining") as show:
            segmentation, refinement = refine_segmentation(
                volume, segmentation, labels, models.sam, modality, keep_largest, show
            )
        rows = refinement_rows(refinement, volume.geometry)
        return segmentation, {"sam": models.sam.identify(), "organs": rows}

    def write(self, planned: PlannedScan, scan: LabelledScan) -> dict[str, Any]:
        """Write the results of a scan.

        Returns:
            What a program may want to know: the scan's entry in the JSON output.

        Raises:
            VolumeError, OutputError: see `scan_results.write_results`.
        """
        started, models = time.perf_counter(), self.models()
        sam = models.sam.name if models.sam else None
        write_results(planned, scan, models.bundle.description, sam)
        if self.record:
            with report_os_errors(self.record.folder):
                self.record.add(planned.path, planned.results)
        seconds = scan.seconds | {"write": time.perf_counter() - started}
        return as_json(planned, replace(scan, seconds=seconds), models.bundle.description)


def _modality_of_all(volumes: Sequence["Volume"]) -> str | None:
    """Return the modality of all volumes of a scan if they would be taken for different ones."""
    from SRCSMSegmenterLib.modality import modality_of

    # A CT has air below -100 in some volumes at least, MR in none.
    return "CT" if len({modality_of(volume) for volume in volumes}) > 1 else None


def _require_nifti(planned: PlannedScan, count: int) -> None:
    """Check that files can hold several volumes, before these are segmented.

    Raises:
        VolumeError: they cannot.
    """
    for path in filter(None, (planned.labels, planned.confidence)):
        if not ending(path).startswith(".nii"):
            raise VolumeError(
                f"{planned.path} holds {count} volumes, and {path.name} can hold one; end it with "
                ".nii.gz."
            )
