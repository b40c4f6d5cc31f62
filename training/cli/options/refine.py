# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm refine``."""

from pathlib import Path

from SRCSMSegmenterLib.endings import LABELS

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "refine",
        "let SAM redraw organs within boxes",
        "Where SAM's mask is not to be trusted, the coarse one stays; both are said. Without\n"
        "--coarse, SAM's stays. Research use only, not for diagnosis.",
        "  srcsm refine mr.nii.gz --boxes boxes.json -o organs.seg.nrrd\n"
        "  srcsm refine mr.nii.gz --boxes boxes.json --coarse coarse.nii.gz \\\n"
        "      --coarse-confidence sure.nii.gz -o organs.seg.nrrd --pictures pictures\n"
        "  srcsm refine mr.nii.gz --boxes boxes.json -o organs.nii.gz \\\n"
        "      --sam sam_vit_b_01ec64.pth --mosaic slices",
    )
    arguments.add_scan(parser)
    parser.add_argument(
        "--boxes", type=Path, required=True, metavar="FILE.json", help="from srcsm boxes or Slicer"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help=f"a file ending in {', '.join(LABELS)}"
    )
    arguments.add_coarse(parser)
    arguments.add_sam(parser, f"{arguments.SAM_HELP} (default: the one of the scan's modality)")
    parser.add_argument(
        "--mosaic",
        choices=("crops", "slices", "off"),
        default="crops",
        help="what goes through SAM's encoder at once: squares around the organ (default), whole "
        "slices side by side, or one slice",
    )
    parser.add_argument(
        "--mask-threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="of SAM's probabilities (default: 0.5)",
    )
    parser.add_argument(
        "--no-mask-prompt",
        dest="mask_prompt",
        action="store_false",
        help="do not give SAM the coarse mask as a first guess",
    )
    parser.add_argument(
        "--confidence", type=Path, metavar="FILE", help="also write the labels' probability"
    )
    arguments.add_pictures(parser, "of the boxes and of both masks")
    arguments.add_modality(parser)
    arguments.add_series(parser)
    arguments.add_device(parser)
    arguments.add_json(parser)
