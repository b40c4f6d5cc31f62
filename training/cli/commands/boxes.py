# SPDX-License-Identifier: Apache-2.0
"""``srcsm boxes``: from a coarse segmentation to boxes."""

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMRefineLib.boxes.boxes import AXES, SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan, slices_without_box
from SAMRefineLib.boxes.key_frames import KeyFrames, save_boxes
from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.endings import SEGMENTATION, ending, stem
from SRCSMSegmenterLib.errors import ConfigError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.source_matching import wanted
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

from ..console import (
    check_writable,
    load_model,
    make_folder,
    print_json,
    progress_display,
    say,
)


def run(arguments: argparse.Namespace) -> int:
    """Write the boxes of a scan's organs, and pictures of them."""
    require_labels(arguments)
    if arguments.output.suffix != ".json":
        raise ConfigError(f"{arguments.output} holds boxes; let its name end in .json.")
    check_writable(arguments.output.absolute().parent)
    if arguments.pictures:
        make_folder(arguments.pictures)
    scan = read_volume(arguments.scan, arguments.series)
    if arguments.coarse:
        organs = read_coarse(arguments.coarse, arguments.coarse_confidence, scan.geometry)
    else:
        organs = segment_coarse(scan, arguments)
    grid = slice_grid(scan.geometry, arguments.axis)
    frames = [
        KeyFrames.from_coarse(
            organ.name,
            organ.label,
            organ.mask,
            grid,
            box_confidence=arguments.box_confidence,
            shrink=arguments.shrink,
            in_volume=not arguments.unfiltered,
            in_slices=not arguments.unfiltered,
        )
        for organ in organs
    ]
    save_boxes(arguments.output, frames)
    pictures = []
    if arguments.pictures:
        pictures = draw_boxes(arguments.pictures / stem(arguments.scan), scan, frames, organs)
    rows = [
        {
            "label": organ.label,
            "name": organ.name,
            "boxes": len(made.automatic),
            "slices_without_box": slices_without_box(organ.mask, grid, made.automatic),
        }
        for organ, made in zip(organs, frames, strict=True)
    ]
    if arguments.json:
        print_json(
            {
                "input": str(arguments.scan),
                "output": str(arguments.output),
                "axis": AXES[grid.axis],
                "organs": rows,
                "pictures": [str(path) for path in pictures],
            }
        )
        return 0
    print(f"{arguments.output} (slices along {AXES[grid.axis]})")
    for row in rows:
        unboxed = row["slices_without_box"]
        note = f"; shown without a box in {numbers(unboxed)}" if unboxed else ""
        print(f"  {row['name']:<20} {row['boxes']:4d} boxes{note}")
        if not row["boxes"]:
            say(f"srcsm: no box for {row['name']}: nothing is above {arguments.box_confidence:g}.")
    return 0


def require_labels(arguments: argparse.Namespace) -> None:
    """Probabilities alone do not tell which organ they are of."""
    if arguments.coarse_confidence and not arguments.coarse:
        raise ConfigError("--coarse-confidence needs the label map it belongs to: --coarse.")


def slice_grid(geometry: Geometry, axis: str) -> SliceGrid:
    """The slices along "I", "J" or "K", or along the axis of the acquisition ("auto")."""
    return SliceGrid(geometry, geometry.coarsest_axis if axis == "auto" else AXES.index(axis))


def read_coarse(labels: Path, confidence: Path | None, geometry: Geometry) -> list[CoarseOrgan]:
    """The organs of a label map, with the probabilities that `srcsm segment --confidence` wrote.

    Raises:
        VolumeError: unreadable, without any label, or on another grid than the scan's.
    """
    volume = read_labels(labels)
    _require_grid(labels, volume, geometry)
    values = [int(value) for value in np.unique(volume.array) if value > 0]
    if not values:
        raise VolumeError(f"{labels} holds no label; segment the scan first.")
    sure = None
    if confidence:
        probabilities = read_volume(confidence)
        _require_grid(confidence, probabilities, geometry)
        sure = probabilities.array
    names = segment_names(labels)
    return [
        CoarseOrgan(
            names.get(value, f"label {value}"),
            value,
            mask if sure is None else np.where(mask, sure, 0).astype(np.float16),
        )
        for value in values
        for mask in [volume.array == value]
    ]


def segment_names(path: Path) -> dict[int, str]:
    """Name of each label value as a .seg.nrrd file has it; empty for other formats."""
    if ending(path) != SEGMENTATION:
        return {}
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    names = {}
    while reader.HasMetaDataKey(key := f"Segment{len(names)}_LabelValue"):
        value = int(reader.GetMetaData(key))
        names[value] = reader.GetMetaData(key.replace("LabelValue", "Name"))
    return names


def segment_coarse(scan: Volume, arguments: argparse.Namespace) -> list[CoarseOrgan]:
    """The organs that a trained network finds, with their probabilities."""
    device = str(resolve_device(arguments.device))
    bundle = load_model(arguments.model)
    modality = arguments.modality or guess_modality(scan.array)
    with progress_display(arguments.scan.name) as show:
        found = segment(
            scan,
            bundle,
            modality=modality,
            source_matching=wanted("auto", modality, bundle.description.rule),
            device=device,
            keep_largest=False,
            keep_probabilities=True,
            progress=lambda stage, fraction: show(round(100 * fraction), 100, stage),
        )
    return [
        CoarseOrgan(label.name, label.value, found.probabilities[label.value])
        for label in bundle.description.labels
    ]


def draw_boxes(
    start: Path, scan: Volume, frames: list[KeyFrames], organs: list[CoarseOrgan]
) -> list[Path]:
    """A picture per organ with boxes, called `start`_ORGAN.png."""
    from ...evaluation.overlays import COARSE_COLOUR, Outline, overlay_picture

    paths = []
    for made, organ in zip(frames, organs, strict=True):
        coarse = Outline("coarse", organ.mask >= 0.5, COARSE_COLOUR)
        if boxes := made.effective():
            path = picture_path(start, organ.name)
            overlay_picture(path, scan.array, made.grid, organ.name, boxes, [coarse])
            paths.append(path)
    return paths


def picture_path(start: Path, organ: str) -> Path:
    """`start`_ORGAN.png, whatever the organ is called."""
    plain = "".join(c if c.isalnum() else "_" for c in organ)
    return start.with_name(f"{start.name}_{plain}.png")


def numbers(slices: list[int]) -> str:
    """3, 4, 5, 9 -> "3-5, 9"."""
    runs: list[list[int]] = []
    for n in slices:
        if runs and n == runs[-1][-1] + 1:
            runs[-1][1:] = [n]
        else:
            runs.append([n])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _require_grid(path: Path, volume: Volume, geometry: Geometry) -> None:
    if not volume.geometry.matches(geometry):
        raise VolumeError(f"{path} does not lie on the scan's grid; give one that was made of it.")
