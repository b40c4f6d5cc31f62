# SPDX-License-Identifier: Apache-2.0
"""Packed datasets: all prepared cases of a dataset in one file.

A training needs nothing but this file, so it runs on a node without the scans and without
SimpleITK. The file is a safetensors file, compressed by gzip. It holds the tensors of the cache
(`cases.py`) of every case and its histogram, and as metadata a description of the dataset.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from SRCSMSegmenterLib.atomic import read_regular
from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample
from SRCSMSegmenterLib.source_matching import SourceHistogram, add_counts, count_values, to_integers
from SRCSMSegmenterLib.volume_io import read_volume

from .cases import Tensors, cached_tensors
from .dataset import Case, Dataset, case_content

SUFFIX = ".safetensors.gz"
"""Ending of a packed dataset's name."""

PARTS = {"image", "labels", "affine", "values", "counts"}
"""Tensors of a case."""

COMPRESSION = 6
"""Level of gzip; higher ones save 1 % and take several times as long."""


@dataclass(frozen=True, eq=False)
class PackedDataset:
    """A dataset with its prepared cases.

    Attributes:
        dataset: its folder and the paths of its cases are those of the packed file.
        rule: scaled the intensities.
        smoothing: sigma in mm on the scans' own grid.
        contents: case -> what tells whether it is the same (`case_content`), and its grid if that
            is not the scan's own.
        tensors: case -> image (K, J, I) float16, labels (K, J, I) uint8 and affine, and the
            distinct values of the scan's integers and their counts, (n,) int64.
    """

    dataset: Dataset
    rule: IntensityRule
    smoothing: float
    contents: dict[str, str]
    tensors: dict[str, Tensors]

    def prepared_tensors(self, case: Case) -> Tensors:
        """Return the image, the labels and the affine of a case."""
        return {name: self.tensors[case.name][name] for name in ("image", "labels", "affine")}

    def histogram(self, cases: Sequence[Case]) -> SourceHistogram:
        """Add up the histograms of cases; the same as `fit` of their scans' integers."""
        tensors = (self.tensors[case.name] for case in cases)
        return add_counts((one["values"].numpy(), one["counts"].numpy()) for one in tensors)


def is_packed(path: Path) -> bool:
    """Tell whether a path names a packed dataset."""
    return path.name.endswith(SUFFIX)


def pack(
    dataset: Dataset, rule: IntensityRule, smoothing: float, cache: Path, grid: GridSpec | None
) -> PackedDataset:
    """Prepare and pack the cases of a dataset.

    Args:
        smoothing: sigma in mm.
        cache: folder of the prepared cases; see `prepare_cases`.
        grid: voxels finer than its spacing along its axes are made as coarse as it; None keeps the
            scans' own grids.

    Raises:
        VolumeError, DatasetError: a case cannot be read.
    """
    contents, tensors = {}, {}
    for case in dataset.cases:
        prepared = cached_tensors(case, rule, smoothing, cache)
        packed = on_coarser_grid(prepared, grid) if grid else prepared
        size = packed["image"].shape[::-1]
        own = size == prepared["image"].shape[::-1]
        contents[case.name] = case_content(case) + ("" if own else f", in {list(size)} voxels")
        values, counts = count_values(to_integers(read_volume(case.image).array, rule))
        histogram = {"values": torch.from_numpy(values), "counts": torch.from_numpy(counts)}
        tensors[case.name] = packed | histogram
    return PackedDataset(dataset, rule, smoothing, contents, tensors)


def on_coarser_grid(tensors: Tensors, grid: GridSpec) -> Tensors:
    """Resample a prepared case whose voxels are finer than a grid's spacing.

    The scan keeps its axes and its outer faces, so a spacing may be a little coarser. Images are
    interpolated linearly, as windows are, and labels are those of the nearest voxel.

    Args:
        tensors: image (K, J, I) float16, labels (K, J, I) uint8 and affine.
        grid: its size has no meaning.
    """
    image, labels = tensors["image"], tensors["labels"]
    scan = Geometry(tuple(image.shape[::-1]), tensors["affine"].numpy())
    nearest = np.abs(scan.direction.T @ grid.directions_over(scan)).argmax(1)
    coarser = np.maximum(1.0, np.array(grid.spacing)[nearest] / scan.spacing)
    size = np.maximum(1, np.floor(scan.size / coarser + 1e-3)).astype(int)
    if np.array_equal(size, scan.size):
        return tensors
    step = np.array(scan.size) / size
    affine = scan.affine @ np.diag([*step, 1.0])
    affine[:3, 3] = scan.to_ras((step - 1) / 2)
    target = Geometry(tuple(size.tolist()), affine)
    lookup = look_up(points(index_map(target, scan), target.size), scan.shape)
    return {
        "image": sample(image[None], lookup)[0].half(),
        "labels": sample(labels[None], lookup, mode="nearest")[0].to(torch.uint8),
        "affine": torch.tensor(affine),
    }


def to_bytes(packed: PackedDataset) -> bytes:
    """Write a packed dataset into memory; the same content gives the same bytes."""
    dataset = packed.dataset
    index = {
        "dataset": dataset.name,
        "modality": dataset.modality,
        "labels": dataset.labels,
        "rule": asdict(packed.rule),
        "smoothing": packed.smoothing,
        "contents": packed.contents,
    }
    tensors = {
        f"{case}/{name}": tensor.contiguous()
        for case, parts in packed.tensors.items()
        for name, tensor in parts.items()
    }
    content = save_tensors(tensors, {"index": json.dumps(index)})
    return gzip.compress(content, COMPRESSION, mtime=0)


def read_packed(path: Path) -> PackedDataset:
    """Read a packed dataset.

    Raises:
        DatasetError: unreadable, damaged or no packed dataset.
    """
    try:
        content = gzip.decompress(read_regular(path))
        length = int.from_bytes(content[:8], "little")
        index = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["index"])
        return _from_index(path, index, load_tensors(content))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist.") from error
    except (
        *(OSError, EOFError, zlib.error, SafetensorError),
        *(ValueError, KeyError, TypeError, AttributeError),
    ) as error:
        raise DatasetError(
            f"{path} cannot be read as a packed dataset ({error}); pack it again (srcsm pack-data)."
        ) from error


def _from_index(path: Path, index: Mapping, tensors: Tensors) -> PackedDataset:
    cases: dict[str, Tensors] = {case: {} for case in index["contents"]}
    for key, tensor in tensors.items():
        case, name = key.rsplit("/", 1)
        cases[case][name] = tensor
    for tensors_of_case in cases.values():
        if missing := PARTS - tensors_of_case.keys():
            raise KeyError(f"no {', '.join(sorted(missing))}")
    dataset = Dataset(
        path,
        index["dataset"],
        index["modality"],
        index["labels"],
        tuple(Case(case, path, path) for case in cases),
    )
    rule = IntensityRule(**index["rule"])
    return PackedDataset(dataset, rule, index["smoothing"], index["contents"], cases)
