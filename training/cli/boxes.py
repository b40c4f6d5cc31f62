# SPDX-License-Identifier: Apache-2.0
"""``srcsm boxes``: boxes around organs, slice by slice, from a coarse segmentation."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.endings import stem
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.terminology import readable

from . import arguments as options
from .console import print_json, say, stage_display
from .outputs import check_writable, make_folder
from .scan_input import read_scan
from .tables import Rows, name_width, ranges

if TYPE_CHECKING:
    from SAMRefineLib.boxes.boxes import SliceGrid
    from SAMRefineLib.boxes.coarse import CoarsePatch
    from SAMRefineLib.boxes.key_frames import KeyFrames
    from SRCSMSegmenterLib.geometry import Volume


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "boxes",
        "draw boxes around the organs that a network is sure of, slice by slice",
        "The boxes are for srcsm refine, as they are or corrected by hand. x0 y0 x1 y1 are edges\n"
        "in voxels; voxel n reaches from n to n + 1. Without --coarse the scan is segmented first.",
        "  srcsm boxes mr.nii.gz -o boxes.json --pictures pictures\n"
        "  srcsm boxes mr.nii.gz -o boxes.json --coarse organs.seg.nrrd \\\n"
        "      --coarse-confidence sure.nii.gz --box-confidence 0.9",
    )
    options.add_scan(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.json", help="file of the boxes"
    )
    options.add_coarse(parser)
    options.add_model(parser, options.DEFAULT_MODEL)
    parser.add_argument(
        "--box-confidence",
        type=float,
        default=0.75,
        metavar="P",
        help="probability above which the network counts as sure (default: 0.75)",
    )
    parser.add_argument(
        "--shrink",
        type=options.positive,
        default=1,
        metavar="N",
        help="average N x N pixels first, as the paper does with 4 (default: 1)",
    )
    parser.add_argument(
        "--unfiltered",
        action="store_true",
        help="draw boxes around stray pieces too (default: around one piece; of a scan that is "
        "segmented first that which srcsm segment keeps, else the largest)",
    )
    parser.add_argument(
        "--axis",
        choices=("auto", "I", "J", "K"),
        default="auto",
        help="voxel axis across the slices (default: auto, the last one, or a clearly coarser one)",
    )
    options.add_pictures(parser, "of the boxes")
    options.add_modality(parser)
    options.add_series(parser)
    options.add_device(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the boxes of a scan's organs, and pictures of them."""
    options.require_coarse(arguments)
    if arguments.output.suffix != ".json":
        raise ConfigError(f"{arguments.output} holds boxes; its name has to end in .json.")
    check_writable(arguments.output.absolute().parent)
    if arguments.pictures:
        make_folder(arguments.pictures)

    from SAMRefineLib.boxes.boxes import AXES, SliceGrid
    from SAMRefineLib.boxes.key_frames import KeyFrames, save_boxes

    scan, modality = read_scan(arguments)
    organs = _coarse_organs(arguments, scan, modality)
    auto = arguments.axis == "auto"
    axis = scan.geometry.slice_axis if auto else AXES.index(arguments.axis)
    grid = SliceGrid(scan.geometry, axis)
    frames = [
        KeyFrames.from_patch(
            organ.name,
            organ.label,
            organ.patch,
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
        from ..evaluation.overlays import box_pictures

        start = arguments.pictures / stem(arguments.scan)
        for boxes, organ in zip(frames, organs, strict=True):
            pictures += box_pictures(start, scan, [boxes], [organ.organ(scan.geometry.shape)])
    rows = _rows(organs, frames, grid)
    if arguments.json:
        print_json(
            {
                "input": str(arguments.scan),
                "output": str(arguments.output),
                "axis": AXES[axis],
                "organs": rows,
                "pictures": [str(path) for path in pictures],
            }
        )
        return 0
    width = name_width(rows)
    print(f"{arguments.output} (slices along {AXES[axis]})")
    for row in rows:
        unboxed = row["slices_without_box"]
        note = f"; shown without a box in {ranges(unboxed)}" if unboxed else ""
        print(f"  {readable(row['name']):{width}} {row['boxes']:4d} boxes{note}")
        if not row["boxes"]:
            limit = f"{arguments.box_confidence:g}"
            say(f"srcsm: no box for {readable(row['name'])}: no probability is above {limit}.")
    return 0


def _coarse_organs(
    arguments: argparse.Namespace, scan: "Volume", modality: str
) -> list["CoarsePatch"]:
    """Read the coarse organs from --coarse, or segment the scan."""
    if arguments.coarse:
        from ..data.coarse import read_coarse_patches

        return read_coarse_patches(arguments.coarse, arguments.coarse_confidence, scan.geometry)

    from SAMRefineLib.boxes.coarse import CoarsePatch
    from SAMRefineLib.boxes.patches import Patch
    from SRCSMSegmenterLib.devices import resolve_device
    from SRCSMSegmenterLib.inference import segment
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model
    from SRCSMSegmenterLib.source_matching import wanted

    device = str(resolve_device(arguments.device))
    bundle = load_bundle(find_model(arguments.model))
    with stage_display(arguments.scan.name) as show:
        segmentation = segment(
            scan,
            bundle,
            modality=modality,
            source_matching=wanted("auto", modality, bundle.description.rule),
            device=device,
            keep_largest=not arguments.unfiltered,
            progress=show,
        )
    organs = []
    for label in bundle.description.labels:
        block = segmentation.probabilities.block(label.value)
        organs.append(CoarsePatch(label.name, label.value, Patch(block.first, block.values)))
    return organs


def _rows(organs: list["CoarsePatch"], frames: list["KeyFrames"], grid: "SliceGrid") -> Rows:
    from SAMRefineLib.boxes.coarse import patch_slices_without_box

    return [
        {
            "label": organ.label,
            "name": organ.name,
            "boxes": len(boxes.automatic),
            "slices_without_box": patch_slices_without_box(organ.patch, grid, boxes.automatic),
        }
        for organ, boxes in zip(organs, frames, strict=True)
    ]
