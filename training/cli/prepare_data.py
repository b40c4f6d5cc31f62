# SPDX-License-Identifier: Apache-2.0
"""``srcsm prepare-data``: published downloads become nnU-Net raw datasets."""

import argparse
from pathlib import Path

from . import arguments as options
from .console import progress_display

NAMES = ("mm-whs", "mnms-2", "prostate-six-sites", "verse", "spider", "montgomery")


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "prepare-data",
        "turn a published download, as it is unpacked, into nnU-Net raw datasets",
        "Nothing is downloaded. srcsm train --list-presets names the downloads' layouts.",
        "  srcsm prepare-data mm-whs downloads/MM-WHS data\n"
        "  srcsm prepare-data prostate-six-sites downloads/prostate data",
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the download")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the datasets")


def run(arguments: argparse.Namespace) -> int:
    """Write the datasets, and print their folders."""
    from ..data.downloads import prepare_download

    with progress_display(arguments.name) as show:
        folders = prepare_download(arguments.name, arguments.source, arguments.out, show)
    for folder in folders:
        print(folder)
    return 0
