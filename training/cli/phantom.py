# SPDX-License-Identifier: Apache-2.0
"""``srcsm phantom``."""

import argparse
from pathlib import Path

from . import arguments as options
from .console import progress_display
from .outputs import report_os_errors, report_volume_errors


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "phantom",
        "write an nnU-Net raw dataset of a digital phantom of the abdomen",
        "The same seed gives the same anatomy in both modalities.",
        "  srcsm phantom phantoms/Dataset901_PhantomCT --modality CT --cases 8\n"
        "  srcsm phantom phantoms/Dataset902_PhantomMR --modality MR --cases 4 --seed 100",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of the dataset, created if needed"
    )
    parser.add_argument(
        "--modality", choices=("CT", "MR"), required=True, help="modality of all cases"
    )
    parser.add_argument(
        "--cases",
        type=options.positive,
        default=8,
        metavar="N",
        help="number of cases (default: 8)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Write a dataset of phantom scans."""
    from ..data.phantom import write_dataset

    with (
        report_os_errors(arguments.folder),
        report_volume_errors(),
        progress_display(f"{arguments.modality} phantoms") as show,
    ):
        write_dataset(
            arguments.folder,
            arguments.modality,
            arguments.cases,
            arguments.seed,
            lambda done, total: show(done, total, "cases"),
        )
    print(arguments.folder)
    return 0
