# SPDX-License-Identifier: Apache-2.0
"""Label maps that another tool wrote, one file a case, as nnU-Net does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from SRCSMSegmenterLib.alignment import on_grid
from SRCSMSegmenterLib.dataset_file import FILE, read_description
from SRCSMSegmenterLib.endings import READABLE, SEGMENTATION
from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.schema import convert_keys
from SRCSMSegmenterLib.volume_io import read_labels

from ..data.dataset import Case, Dataset


@dataclass(frozen=True)
class Predictions:
    """The label maps of a tool for the cases of datasets.

    Attributes:
        folder: with the label maps, CASE and an ending that `volume_io` reads, or in a folder of
            the dataset's name within it.
        files: (dataset's name, case's name) -> file.
        labels: dataset's name -> label -> name, by the dataset.json that nnU-Net puts beside its
            label maps; {} if there is none.
    """

    folder: Path
    files: dict[tuple[str, str], Path]
    labels: dict[str, dict[int, str]]

    def read(self, dataset: str, case: Case, grid: Geometry) -> Volume:
        """Read the label map of a case.

        Args:
            grid: of the case's image.

        Raises:
            VolumeError: it cannot be read, or does not lie where the image does.
        """
        path = self.files[dataset, case.name]
        return on_grid(read_labels(path), grid, path)


def find_predictions(folder: Path, datasets: Sequence[Dataset]) -> Predictions:
    """Find the label map of every case.

    Raises:
        DatasetError: cases without a label map, or with several; the message names all of them.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; give one with the label maps of the cases.")
    files, labels, faults = {}, {}, []
    for dataset in datasets:
        inner = folder / dataset.name
        place = inner if inner.is_dir() else folder
        labels[dataset.name] = _named_labels(place) or _named_labels(folder)
        for case in dataset.cases:
            named = (place / f"{case.name}{ending}" for ending in (SEGMENTATION, *READABLE))
            existing = [path for path in named if path.is_file()]
            if len(existing) == 1:
                files[dataset.name, case.name] = existing[0]
            elif existing:
                names = " and ".join(path.name for path in existing)
                faults.append(f"{case.name} has {names}; keep one.")
            else:
                faults.append(f"{place / case.name}.nii.gz is missing.")
    if faults:
        raise DatasetError(
            "\n- ".join(
                [
                    f"{folder} does not hold one label map for every case, named as the dataset's; "
                    "add them, or choose with --cases:",
                    *faults,
                ]
            )
        )
    return Predictions(folder, files, labels)


def _named_labels(folder: Path) -> dict[int, str]:
    """Read the labels that a dataset.json in the folder names, without the background."""
    path = folder / FILE
    if not path.exists():
        return {}
    content = convert_keys(
        read_description(folder), {"labels": dict[str, int]}, str(path), DatasetError
    )
    named = {value: name for name, value in content["labels"].items() if value > 0}
    if len(named) < sum(value > 0 for value in content["labels"].values()):
        raise DatasetError(f"{path} gives one label two names; delete it, or mend it.")
    return named
