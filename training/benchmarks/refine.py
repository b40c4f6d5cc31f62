# SPDX-License-Identifier: Apache-2.0
"""SAM Refine in a Slicer scene, through its worker: from releasing a handle to the new segment.

The scene is slicer-core's, so the time that Slicer's windows need to draw is not included.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from srcsm_training.benchmarks.timing import Row, Table, times
from srcsm_training.experiments.reports import REPOSITORY
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder
from SRCSMSegmenterLib.phantom.scans import make_case

if TYPE_CHECKING:
    from SAMRefineLib.scene.session import RefineSession

SAM = "sam-small-mr"
WARM = 4
"""Number of drags whose median is given."""

COLUMNS = ("no worker yet, s", "a new scan, s", "warm, s")


def tables(folder: Path, data: Path, device: torch.device) -> tuple[Table, ...]:
    """Measure on a phantom's MR, and on a much finer one with the organ's surface shown."""
    if reason := missing():
        print(f"SAM Refine in Slicer is left out: {reason}.", file=sys.stderr)
        return ()
    return (
        refine_table("", device),
        refine_table(", surfaces shown", device, finer=(3, 2, 2), surfaces=True),
    )


def missing() -> str:
    """Return why nothing can be measured, or ""."""
    if importlib.util.find_spec("slicer") is None:
        return "slicer-core is not installed"
    return "" if (shipped_models_folder() / SAM).is_dir() else f"{SAM} is not shipped"


def refine_table(
    title: str,
    device: torch.device,
    finer: tuple[int, int, int] = (1, 1, 1),
    surfaces: bool = False,
    organ: int = 1,
) -> Table:
    """Measure seconds until the shown slice is redrawn, and until the whole organ is.

    Args:
        finer: number of voxels that replace one, along K, J, I.
        surfaces: show the segments also as surfaces, which are updated at the end.
        organ: label of the phantom's organ.
    """
    from SRCSMSegmenterLib.scene import worker_host

    worker_host.stop_worker()
    try:
        measured = []
        for patient in (0, 1):
            with opened(patient, device, finer, surfaces, organ) as session:
                measured.append(dragged(session, 0.8))
                if patient == 1:
                    warm = [dragged(session, share) for share in (1.0, 0.8) * (WARM // 2)]
                    measured.append(tuple(map(statistics.median, zip(*warm, strict=True))))
                    shape, slices = session.grid.geometry.shape, session.organ(1).report.boxes
    finally:
        worker_host.stop_worker()
    whats = "the shown slice", f"the organ, {slices} slices"
    rows = tuple(map(Row, whats, zip(*measured, strict=True)))
    return Table(f"SAM Refine, handle released, {times(shape)}{title}, {device}", COLUMNS, rows)


@contextmanager
def opened(
    patient: int,
    device: torch.device,
    finer: tuple[int, int, int],
    surfaces: bool,
    organ: int,
) -> "Iterator[RefineSession]":
    """Yield a session with boxes around an organ of a phantom; a view shows its middle slice."""
    sys.path.insert(0, str(REPOSITORY / "Testing" / "helpers"))
    from slicer_scene_fixture import empty_scene

    sys.path.pop(0)
    import slicer

    from SAMRefineLib.refine.organ_state import Settings
    from SAMRefineLib.scene.logic import boxes

    volume, mask = case(patient, finer, organ)
    with empty_scene() as scene:
        node = slicer.util.addVolumeFromArray(volume.array, volume.geometry.affine, "MR")
        segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "coarse")
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
        segmentation.GetSegmentation().AddEmptySegment("organ", "organ")
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, "organ", node)
        if surfaces:
            segmentation.CreateClosedSurfaceRepresentation()
        view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
        settings = Settings(sam=SAM, modality="MR", device=str(device))
        session = boxes(segmentation, node, settings=settings)
        slices = list(session.organ(1).frames.effective())
        session.jump(slices[len(slices) // 2])
        session.live, session.message = True, fail
        yield session
        session.close()
        scene.RemoveNode(view)


def fail(text: str) -> None:
    """End the benchmark with a message that is meant for the user."""
    raise RuntimeError(text)


def case(patient: int, finer: tuple[int, int, int], organ: int) -> tuple[Volume, np.ndarray]:
    """Make a phantom's MR as Slicer has it, and the mask of an organ, (K, J, I) uint8."""
    image, labels = make_case(patient, "MR")
    mask = (labels.array == organ).astype(np.uint8)
    if image.geometry.left_handed:
        image, mask = Volume(image.array[::-1], image.geometry.mirrored()), mask[::-1]
    block = np.ones(finer, np.uint8)
    affine = image.geometry.affine.copy()
    affine[:3, :3] /= finer[::-1]
    array = np.kron(image.array, block.astype(image.array.dtype))
    geometry = Geometry(array.shape[::-1], affine)
    return Volume(array, geometry), np.ascontiguousarray(np.kron(mask, block))


def dragged(session: "RefineSession", share: float) -> tuple[float, float]:
    """Measure seconds from releasing a slice box until its slice and until the organ is redrawn.

    Args:
        share: new width of the box over that of the automatic box.
    """
    import slicer

    from SAMRefineLib.scene.roi_views import show_block
    from SRCSMSegmenterLib.scene import worker_host

    worker, box = worker_host.worker(), session.slice_box(1)
    automatic = session.organ(1).frames.automatic[session.slice]
    wanted = replace(automatic, x1=automatic.x0 + share * automatic.width)
    redrawn = []
    segmentation = session.segmentationNode.GetSegmentation()
    event = slicer.vtkSegmentation.SourceRepresentationModified
    tag = segmentation.AddObserver(event, lambda *_: redrawn.append(True))
    grid = session.grid
    show_block(box, grid.block(wanted, session.slice), session.volumeNode, grid.geometry)
    started = time.perf_counter()
    box.InvokeCustomModifiedEvent(box.PointEndInteractionEvent)
    while session.organ(1).changed and not redrawn:
        worker.pump(0.005)
    slice_seconds = time.perf_counter() - started
    while session.organ(1).changed:
        worker.pump(0.005)
    organ_seconds = time.perf_counter() - started
    segmentation.RemoveObserver(tag)
    return slice_seconds, organ_seconds
