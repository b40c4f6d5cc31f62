# SPDX-License-Identifier: Apache-2.0
"""``srcsm refine``: SAM redraws organs within boxes."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.endings import LABELS, WRITABLE, stem
from SRCSMSegmenterLib.errors import ConfigError, PromptError
from SRCSMSegmenterLib.terminology import meaning, readable

from . import arguments as options
from .console import print_json, stage_display
from .outputs import make_folder, output_files, report_volume_errors
from .scan_input import read_scan
from .tables import refinement_rows, refinement_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from SAMRefineLib.boxes.coarse import CoarseOrgan
    from SAMRefineLib.boxes.key_frames import KeyFrames
    from SAMRefineLib.refine.refiner import OrganPrompt
    from SAMRefineLib.refine.results import Refinement
    from SAMRefineLib.sam.models import SamModel
    from SRCSMSegmenterLib.geometry import Geometry, Volume


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "refine",
        "let SAM redraw organs within boxes",
        "Boxes are used as in Slicer: of automatic boxes that nobody edited SAM may choose others\n"
        "if the coarse organ is uncertain, and slices without one are left empty.\n"
        "Organs of --coarse that the SAM was not trained on stay as they are, unless it was\n"
        "trained on none of them; --organs redraws them nevertheless. Their names count: boxes\n"
        "made of a .nii.gz have none, those of a .seg.nrrd have.\n"
        "The coarse mask is kept in slices whose SAM mask is rejected; the command names these\n"
        "slices. Without --coarse, SAM's masks are kept. Research use only, not for diagnosis.",
        "  srcsm refine mr.nii.gz --boxes boxes.json -o organs.seg.nrrd\n"
        "  srcsm refine mr.nii.gz --boxes boxes.json --coarse coarse.seg.nrrd \\\n"
        "      --coarse-confidence sure.nii.gz -o organs.seg.nrrd --pictures pictures\n"
        "  srcsm refine mr.nii.gz --boxes boxes.json -o organs.nii.gz \\\n"
        "      --sam sam_vit_b_01ec64.pth --mosaic slices",
    )
    options.add_scan(parser)
    parser.add_argument(
        "--boxes", type=Path, required=True, metavar="FILE.json", help="from srcsm boxes or Slicer"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help=f"a file ending in {', '.join(LABELS)}"
    )
    options.add_coarse(parser)
    parser.add_argument(
        "--organs",
        nargs="+",
        metavar="NAME",
        help="redraw these alone, named as in the boxes; others stay as --coarse has them",
    )
    default = "the one of the scan's modality; srcsm segment --refine takes that of the network's"
    options.add_sam(parser, f"{options.SAM_HELP} (default: {default})")
    parser.add_argument(
        "--mosaic",
        choices=("crops", "slices", "off"),
        default="crops",
        help="what one pass of SAM's encoder sees: crops around the organ (default), whole slices "
        "side by side, or a single slice",
    )
    parser.add_argument(
        "--mask-threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="SAM probability above which a pixel belongs to the mask (default: 0.5)",
    )
    parser.add_argument(
        "--no-mask-prompt",
        dest="mask_prompt",
        action="store_false",
        help="do not give SAM the coarse mask as a mask prompt",
    )
    parser.add_argument(
        "--confidence", type=Path, metavar="FILE", help="also write the labels' probability"
    )
    options.add_pictures(parser, "of the boxes and of both masks")
    options.add_modality(parser)
    options.add_series(parser)
    options.add_device(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Refine a scan's organs, write them and say what changed."""
    options.require_coarse(arguments)
    inputs = [arguments.scan, arguments.boxes, arguments.coarse, arguments.coarse_confidence]
    inputs = [path for path in inputs if path]
    (output,) = output_files([arguments.scan], arguments.output, ".seg.nrrd", taken=inputs)
    confidence = None
    if arguments.confidence:
        (confidence,) = output_files(
            [arguments.scan], arguments.confidence, known=WRITABLE, taken=[output, *inputs]
        )
    if arguments.pictures:
        make_folder(arguments.pictures)

    from SAMRefineLib.boxes.boxes import SliceGrid
    from SAMRefineLib.refine.box_selection import prompts_as_in_slicer
    from SAMRefineLib.refine.refiner import Refiner
    from SAMRefineLib.sam.catalogue import default_for, find_sam
    from SAMRefineLib.sam.models import load_sam

    scan, modality = read_scan(arguments)
    frames, coarse = _boxes_and_coarse(arguments, scan.geometry)
    path = find_sam(arguments.sam or default_for(modality))
    model = load_sam(path, arguments.sam_kind, arguments.device)
    chosen, messages = _chosen(arguments, frames, coarse, model)
    started = time.perf_counter()
    with stage_display(arguments.scan.name) as show:
        mosaic = arguments.mosaic
        grid = SliceGrid(scan.geometry, frames[0].grid.axis)
        refiner = Refiner(scan, grid, model, modality=modality, mosaic=mosaic)
        organs = prompts_as_in_slicer(refiner, chosen, coarse, progress=show)
        if not arguments.mask_prompt:
            organs = [replace(organ, mask_prompt=False) for organ in organs]
        refinement = refiner.refine(organs, mask_threshold=arguments.mask_threshold, progress=show)
    seconds = time.perf_counter() - started
    _write(output, confidence, organs, refinement)
    pictures = _pictures(arguments, scan, organs, refinement)
    rows = refinement_rows(refinement, scan.geometry)
    if arguments.json:
        print_json(
            {
                "input": str(arguments.scan),
                "output": str(output),
                "confidence": str(confidence) if confidence else None,
                "sam": model.identify(),
                "device": str(model.device),
                "organs": rows,
                "messages": messages,
                "encoder_passes": refinement.encoder_passes,
                "seconds": round(seconds, 3),
                "pictures": [str(path) for path in pictures],
            }
        )
    else:
        work = f"{refinement.encoder_passes} encoder passes, {seconds:.1f} s"
        print(f"{output} ({model.name}, {work})\n{refinement_text(rows)}")
        print(*(f"  {message}\n" for message in messages), sep="", end="")
    return 0


def _pictures(
    arguments: argparse.Namespace,
    scan: "Volume",
    organs: "list[OrganPrompt]",
    refinement: "Refinement",
) -> list[Path]:
    """Draw the pictures that were asked for, and return their files."""
    if not arguments.pictures:
        return []
    from ..evaluation.overlays import refinement_pictures

    start = arguments.pictures / stem(arguments.scan)
    return refinement_pictures(start, scan, organs, refinement.labels)


def _boxes_and_coarse(
    arguments: argparse.Namespace, geometry: "Geometry"
) -> "tuple[list[KeyFrames], list[CoarseOrgan]]":
    """Read the boxes and the coarse organs, of which some may have no boxes."""
    from SAMRefineLib.boxes.boxes import SliceGrid
    from SAMRefineLib.boxes.key_frames import load_boxes

    from ..data.coarse import read_coarse

    boxed = load_boxes(arguments.boxes)
    if not boxed:
        raise ConfigError(f"{arguments.boxes} holds no organ; make boxes with srcsm boxes.")
    grid = SliceGrid(geometry, boxed[0].grid.axis)
    for frames in boxed:
        frames.require(grid)
    coarse = []
    if arguments.coarse:
        coarse = read_coarse(arguments.coarse, arguments.coarse_confidence, geometry)
    _check_names(arguments, boxed, coarse)
    return list(boxed), coarse


def _check_names(
    arguments: argparse.Namespace, boxed: "Sequence[KeyFrames]", coarse: "Sequence[CoarseOrgan]"
) -> None:
    """Check that boxes and coarse organs with one label are of one organ, as far as both say it.

    Raises:
        PromptError: they are of different ones.
    """
    from ..data.coarse import nameless

    names = {organ.label: organ.name for organ in coarse}
    for frames in boxed:
        label, name = frames.label, names.get(frames.label, frames.name)
        if nameless(label) not in (name, frames.name) and meaning(name) != meaning(frames.name):
            raise PromptError(
                f"Label {label} is {readable(frames.name)} in {arguments.boxes}, and "
                f"{readable(name)} in {arguments.coarse}; give boxes and labels of one numbering."
            )


def _chosen(
    arguments: argparse.Namespace,
    frames: "list[KeyFrames]",
    coarse: "list[CoarseOrgan]",
    model: "SamModel",
) -> "tuple[list[KeyFrames], list[str]]":
    """Choose the boxes to use, and say which organs the SAM was not trained on."""
    from SAMRefineLib.refine.familiarity import frames_to_refine

    from ..data.coarse import nameless

    names, asked = [each.name for each in frames], arguments.organs
    if asked is not None:
        meant = {meaning(name): name for name in names}
        if unknown := [name for name in asked if meaning(name) not in meant]:
            raise ConfigError(
                f"{arguments.boxes} has no boxes of {', '.join(unknown)}; it has of "
                f"{', '.join(names)}."
            )
        asked = [meant[meaning(name)] for name in asked]
    labels = {organ.label for organ in coarse}
    chosen, messages = frames_to_refine(frames, labels, asked, model)
    if asked is None and model.organs and all(f.name == nameless(f.label) for f in frames):
        messages = [
            f"{arguments.boxes} does not name its organs, so all were redrawn, also those that "
            f"{model.name} was not trained on; make the boxes with --coarse of a .seg.nrrd, or "
            "give --organs."
        ]
    if not chosen:
        sentence = f"No organ of {arguments.boxes} has a box; draw one, or take other boxes."
        raise PromptError(" ".join(messages) or sentence)
    return chosen, messages


def _write(
    output: Path, confidence: Path | None, organs: list["OrganPrompt"], refinement: "Refinement"
) -> None:
    """Write the labels and, if `confidence` is given, their probability."""
    import numpy as np

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.terminology import segment_for
    from SRCSMSegmenterLib.volume_io import write_labels, write_volume

    segments = [segment_for(organ.frames.name, organ.frames.label) for organ in organs]
    with report_volume_errors():
        write_labels(output, refinement.labels, segments)
        if confidence:
            probability = refinement.confidence().astype(np.float32)
            write_volume(confidence, Volume(probability, refinement.labels.geometry))
