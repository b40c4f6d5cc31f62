# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm match``."""

from pathlib import Path

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "match",
        "source matching alone: give a scan the intensities of training images",
        "The result is what a network sees with source matching on, before it is resampled.",
        "  srcsm match mr.nii.gz --model abdomen-ct -o matched.nii.gz\n"
        "  srcsm match mr.nii.gz --source-images Dataset101_AbdomenCT/imagesTr -o matched.nii.gz",
    )
    arguments.add_scan(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file or a folder")
    source = parser.add_mutually_exclusive_group()
    arguments.add_model(source, arguments.DEFAULT_MODEL)
    source.add_argument(
        "--source-images", type=Path, metavar="FOLDER", help="match to these images instead"
    )
    parser.add_argument(
        "--source-modality",
        choices=("CT", "MR"),
        help="of --source-images (default: guessed from the first)",
    )
    arguments.add_modality(parser)
    arguments.add_series(parser)
    arguments.add_json(parser)
