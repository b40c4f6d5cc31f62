# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm phantom``."""

from pathlib import Path

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "phantom",
        "write an nnU-Net raw dataset of a digital phantom of the abdomen",
        "The same seed gives the same anatomy in both modalities.",
        "  srcsm phantom phantoms/Dataset901_PhantomCT --modality CT --cases 8\n"
        "  srcsm phantom phantoms/Dataset902_PhantomMR --modality MR --cases 4 --seed 100",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made where it does not exist")
    parser.add_argument("--modality", choices=("CT", "MR"), required=True)
    parser.add_argument(
        "--cases", type=arguments.positive, default=8, metavar="N", help="default: 8"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first case (default: 0)")
