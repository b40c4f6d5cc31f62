# SPDX-License-Identifier: Apache-2.0
"""Reading of a command's scan, and remarks on its file."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .console import say

if TYPE_CHECKING:
    from SRCSMSegmenterLib.geometry import Volume


def read_scan(arguments: argparse.Namespace) -> tuple["Volume", str]:
    """Read the scan of a command, and say what is odd about it.

    Args:
        arguments: with scan, series and modality, see `arguments`.

    Returns:
        The scan, and its modality: the one that is given, its file's, or else guessed.

    Raises:
        VolumeError: see `volume_io.read_volume`.
    """
    from SRCSMSegmenterLib.geometry import scale_doubts
    from SRCSMSegmenterLib.modality import doubts, modality_of
    from SRCSMSegmenterLib.volume_io import read_volume

    scan = read_volume(arguments.scan, arguments.series)
    modality = modality_of(scan, arguments.modality)
    doubtful = [*scale_doubts(scan.geometry), *doubts(modality, scan.array)]
    tell_remarks(arguments.scan, (*scan.remarks, *doubtful))
    return scan, modality


def tell_remarks(path: Path, remarks: Sequence[str]) -> None:
    """Say what is odd about a file, a sentence each."""
    for remark in remarks:
        say(f"srcsm: warning: {path}: {remark}")
