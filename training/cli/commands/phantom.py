# SPDX-License-Identifier: Apache-2.0
"""``srcsm phantom``."""

import argparse

from ...data.phantom import write_dataset
from ..console import making, writing


def run(arguments: argparse.Namespace) -> int:
    """Write a dataset of phantom scans."""
    with making(arguments.folder), writing():
        write_dataset(arguments.folder, arguments.modality, arguments.cases, arguments.seed)
    print(arguments.folder)
    return 0
