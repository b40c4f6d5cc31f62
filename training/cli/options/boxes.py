# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm boxes``."""

from pathlib import Path

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "boxes",
        "draw boxes around the organs that a network is sure of, slice by slice",
        "For srcsm refine, as they are or corrected by hand. x0 y0 x1 y1 are edges in\n"
        "voxels, voxel n reaching from n to n + 1. Without --coarse the scan is segmented first.",
        "  srcsm boxes mr.nii.gz -o boxes.json --pictures pictures\n"
        "  srcsm boxes mr.nii.gz -o boxes.json --coarse organs.nii.gz \\\n"
        "      --coarse-confidence sure.nii.gz --box-confidence 0.9",
    )
    arguments.add_scan(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    arguments.add_coarse(parser)
    arguments.add_model(parser, arguments.DEFAULT_MODEL)
    parser.add_argument(
        "--box-confidence",
        type=float,
        default=0.75,
        metavar="P",
        help="probability from which the network counts as sure (default: 0.75)",
    )
    parser.add_argument(
        "--shrink",
        type=arguments.positive,
        default=1,
        metavar="N",
        help="average N x N pixels first, as the paper does with 4 (default: 1)",
    )
    parser.add_argument(
        "--unfiltered", action="store_true", help="box stray pieces too (default: the largest)"
    )
    parser.add_argument(
        "--axis",
        choices=("auto", "I", "J", "K"),
        default="auto",
        help="across which slices lie (default: auto, the coarsest)",
    )
    arguments.add_pictures(parser, "of the boxes")
    arguments.add_modality(parser)
    arguments.add_series(parser)
    arguments.add_device(parser)
    arguments.add_json(parser)
