# SPDX-License-Identifier: Apache-2.0
"""File-name endings of volumes and label maps; without the libraries that read them."""

import os
from pathlib import Path

READABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""Endings of the files that `volume_io` reads; .hdr has its voxels in an .img file."""

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of the files that `volume_io` writes scans to."""

SEGMENTATION = ".seg.nrrd"
"""Ending of Slicer's segmentation files, which carry names and colours of labels."""

DICOM = ".dcm"
"""Ending of DICOM segmentations, which `dicom_segmentation` writes."""

LABELS = (".nii.gz", SEGMENTATION, ".nii", ".nrrd", ".mha")
"""Endings of the files that `volume_io` writes label maps to."""


def ending(path: str | Path) -> str:
    """Return the known ending of a file, in lower case; "" for any other."""
    name = Path(path).name.lower()
    return next((known for known in (*LABELS, *READABLE) if name.endswith(known)), "")


def scans_in(folder: Path) -> list[Path]:
    """List the files of scans in a folder, sorted.

    Neither label maps in .seg.nrrd files nor files whose names begin with a dot, which macOS leaves
    beside others, are scans.
    """
    return [
        path
        for path in sorted(folder.glob("*"))
        if ending(path) in READABLE and not path.name.startswith(".")
    ]


def own_name(path: str | Path) -> str:
    """Return the name of a file or folder; that of "." too, and a link's own, not its target's."""
    return os.path.basename(os.path.abspath(path))


def stem(path: str | Path) -> str:
    """Return the name of a file or folder without the ending that tells its format."""
    name = own_name(path)
    return name[: len(name) - len(ending(name))]


def case_name(path: str | Path) -> str:
    """Return the stem of a scan without nnU-Net's number of the first channel.

    nnU-Net names the label map of CASE_0000.nii.gz CASE.nii.gz.
    """
    return stem(path).removesuffix("_0000") or stem(path)
