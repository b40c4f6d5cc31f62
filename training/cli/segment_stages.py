# SPDX-License-Identifier: Apache-2.0
"""What ``srcsm segment`` does with a scan: read it, label it, write the results."""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import stage_display
from .outputs import report_os_errors, report_volume_errors
from .segmented import SegmentedRecord
from .tables import organ_rows, refinement_rows

if TYPE_CHECKING:
    from SAMRefineLib.sam.models import SamModel
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.inference import Segmentation
    from SRCSMSegmenterLib.models.bundle import ModelBundle


@dataclass(frozen=True)
class PlannedScan:
    """A scan and the files that its results are written to.

    Attributes:
        path: file, or folder of a DICOM series.
        confidence: file for the probability of the chosen label, if it was asked for.
    """

    path: Path
    labels: Path
    confidence: Path | None = None

    @property
    def results(self) -> list[Path]:
        """All files that are written."""
        return [path for path in (self.labels, self.confidence) if path]


@dataclass(frozen=True, eq=False)
class Models:
    """The models in use, and the device they compute on."""

    bundle: "ModelBundle"
    sam: "SamModel | None"
    device: str


@dataclass(frozen=True, eq=False)
class ReadScan:
    """A scan as it was read; `seconds` is what that took."""

    volume: "Volume"
    seconds: float


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A scan, its labels, and how they were found.

    Attributes:
        source_matching: whether the scan was matched to the network's source.
        refinement: what SAM changed, for the JSON output; None without SAM.
        seconds: duration per stage.
    """

    volume: "Volume"
    segmentation: "Segmentation"
    modality: str
    source_matching: bool
    refinement: dict[str, Any] | None
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class SegmentStages:
    """The stages of ``srcsm segment``.

    Attributes:
        arguments: options of the command.
        record: of the folder that the results are written to, if they are.
    """

    arguments: argparse.Namespace
    models: Models
    record: SegmentedRecord | None = None

    def read(self, planned: PlannedScan) -> ReadScan:
        """Read a scan.

        Raises:
            VolumeError: see `volume_io.read_volume`.
        """
        from SRCSMSegmenterLib.volume_io import read_volume

        started = time.perf_counter()
        volume = read_volume(planned.path, self.arguments.series)
        return ReadScan(volume, time.perf_counter() - started)

    def label(self, planned: PlannedScan, scan: ReadScan) -> LabelledScan:
        """Segment a scan and, if there is a SAM, refine it.

        Raises:
            VolumeError, SourceMatchingError, DeviceError: see `inference.segment`.
        """
        from SRCSMSegmenterLib.inference import segment
        from SRCSMSegmenterLib.modality import guess_modality
        from SRCSMSegmenterLib.source_matching import wanted

        arguments, bundle, volume = self.arguments, self.models.bundle, scan.volume
        modality = arguments.modality or guess_modality(volume.array)
        matching = wanted(arguments.source_matching, modality, bundle.description.rule)
        with stage_display(planned.path.name) as show:
            segmentation = segment(
                volume,
                bundle,
                modality=arguments.modality,
                source_matching=matching,
                device=self.models.device,
                keep_largest=arguments.keep_largest,
                progress=show,
            )
        seconds = {"read": scan.seconds} | segmentation.seconds
        refinement = None
        if self.models.sam is not None:
            segmentation, refinement = self._refined(volume, segmentation, modality)
            seconds |= segmentation.seconds
        return LabelledScan(volume, segmentation, modality, matching, refinement, seconds)

    def _refined(
        self, volume: "Volume", segmentation: "Segmentation", modality: str
    ) -> tuple["Segmentation", dict[str, Any]]:
        """Refine a segmentation with SAM; return it, and what happened to each organ."""
        from SAMRefineLib.refine.after_segmentation import refine_segmentation

        models, keep_largest = self.models, self.arguments.keep_largest
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
            OutputError: they cannot be written.
        """
        import numpy as np

        from SRCSMSegmenterLib.geometry import Volume
        from SRCSMSegmenterLib.volume_io import write_labels, write_volume

        started = time.perf_counter()
        segmentation, labels = scan.segmentation, self.models.bundle.description.labels
        with report_volume_errors():
            write_labels(planned.labels, segmentation.labels, labels)
            if planned.confidence:
                probability = segmentation.confidence().astype(np.float32)
                write_volume(planned.confidence, Volume(probability, scan.volume.geometry))
        if self.record:
            with report_os_errors(self.record.folder):
                self.record.add(planned.path, planned.results)
        seconds = scan.seconds | {"write": time.perf_counter() - started}
        return {
            "input": str(planned.path),
            "output": str(planned.labels),
            "confidence": str(planned.confidence) if planned.confidence else None,
            "modality": scan.modality,
            "source_matching": scan.source_matching,
            "organs": organ_rows(segmentation, labels),
            "refinement": scan.refinement,
            "messages": segmentation.messages,
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        }
