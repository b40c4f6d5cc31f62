# SPDX-License-Identifier: Apache-2.0
"""Datasets of phantom scans."""

from collections.abc import Callable
from pathlib import Path

from SRCSMSegmenterLib.dataset_file import new_description, write_description
from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.phantom.anatomy import LABELS
from SRCSMSegmenterLib.phantom.scans import make_case
from SRCSMSegmenterLib.volume_io import write_volume


def write_dataset(
    folder: Path,
    modality: str,
    cases: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write an nnU-Net raw dataset of `cases` patients, with the seeds `seed`, `seed + 1`, ...

    Args:
        modality: "CT" or "MR".
        progress: called as progress(done, total) after every case.

    Raises:
        DatasetError: the folder already holds other cases.
        VolumeError: a file cannot be written.
    """
    folder = Path(folder)
    names = {f"phantom_{number:04d}": number for number in range(seed, seed + cases)}
    others = {path.name for path in folder.glob("labelsTr/*")} - {f"{n}.nii.gz" for n in names}
    if others:
        raise DatasetError(
            f"{folder} already holds other cases ({min(others)}); give a new folder."
        )
    for subfolder in ("imagesTr", "labelsTr"):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for done, (name, number) in enumerate(names.items(), start=1):
        image, labels = make_case(number, modality)
        write_volume(folder / "imagesTr" / f"{name}_0000.nii.gz", image)
        write_volume(folder / "labelsTr" / f"{name}.nii.gz", labels)
        progress(done, cases)
    foreground = {name: label for name, label in LABELS.items() if label}
    write_description(folder, new_description(modality, foreground, cases))
