# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm segment``."""

from pathlib import Path

from SRCSMSegmenterLib.endings import LABELS

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "segment",
        "label the organs of scans with a trained network",
        "The labels lie on the scan's own grid. Slices are numbered from 0 along the last voxel\n"
        "axis (K). Research use only, not for diagnosis.",
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd\n"
        "  srcsm segment dicom_folder -o organs.nii.gz --confidence sure.nii.gz --json\n"
        "  srcsm segment *.nii.gz -o labels --format .seg.nrrd --model runs/ct/model\n"
        "  srcsm segment ct.nii.gz -o organs.nii.gz --source-matching off --device cuda:1\n"
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd --refine",
    )
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help=arguments.SCAN_HELP)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=f"a file ending in {', '.join(LABELS)} (.seg.nrrd opens in Slicer with names and "
        "colours), or a folder, which several scans need",
    )
    parser.add_argument(
        "--format",
        choices=LABELS,
        default=".nii.gz",
        help="of the files in an output folder (default: .nii.gz)",
    )
    arguments.add_model(parser, arguments.DEFAULT_MODEL)
    parser.add_argument(
        "--source-matching",
        choices=("auto", "on", "off"),
        default="auto",
        help="give the scan the intensities the network was trained on; auto (default): where "
        "its modality is another than the network's",
    )
    arguments.add_modality(parser)
    arguments.add_keep_largest(
        parser,
        default=True,
        help="keep only the largest piece of each organ, or all pieces",
        alias="--all-pieces",
    )
    parser.add_argument(
        "--confidence",
        type=Path,
        metavar="PATH",
        help="also write the probability of the chosen label; a file, or a folder for several",
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="draw boxes around what the network finds and let SAM refine it",
    )
    default = "sam-small-ct or sam-small-mr, as the network was trained on CT or MR"
    arguments.add_sam(parser, f"{arguments.SAM_HELP} (default: {default})")
    arguments.add_series(parser)
    arguments.add_device(parser)
    arguments.add_json(parser)
