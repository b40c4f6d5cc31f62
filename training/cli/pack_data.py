# SPDX-License-Identifier: Apache-2.0
"""``srcsm pack-data``."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import ConfigError

from . import arguments as options
from .console import say
from .outputs import make_folder, report_os_errors

if TYPE_CHECKING:
    from SRCSMSegmenterLib.geometry import GridSpec

    from ..data.packed import PackedDataset
    from ..sam.from_scratch import SamConfig
    from ..segmentation.config import TrainingConfig

SAM = "sam"
"""Name of the small SAM's configuration beside the presets."""

MIB = 2**20


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "pack-data",
        "write the prepared cases of a dataset into one file, to train elsewhere",
        "A training from the file needs neither the scans nor SimpleITK, MONAI or network. With\n"
        "the scans' own grids its batches are, to the bit, those from the dataset's folder, and\n"
        "each goes on with a training that the other began.",
        "  srcsm pack-data --data Dataset101_AbdomenCT --preset abdomen-fast --out packed\n"
        "  srcsm pack-data --data Dataset101_AbdomenCT Dataset102_AbdomenMR --out packed \\\n"
        "      --preset abdomen-fast --spacing 3.2 3.2 5 --max-mib 40\n"
        "  srcsm pack-data --data Dataset101_AbdomenCT --preset sam --spacing 2 2 5 --out packed\n"
        "  srcsm train --data packed/Dataset101_AbdomenCT.safetensors.gz --preset abdomen-fast \\\n"
        "      --out runs/ct",
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="nnU-Net raw datasets, a file each",
    )
    parser.add_argument(
        "--preset", required=True, metavar="NAME", help="preset of the training; sam: of train-sam"
    )
    options.add_configuration(
        parser, "the training's configuration", "single values of it, such as data.cases=[ct_0*]"
    )
    parser.add_argument(
        "--spacing",
        type=options.positive_number,
        nargs=3,
        metavar=("I", "J", "K"),
        help="mm along the axes of the preset's windows; finer voxels are made as coarse as this, "
        "and images are then interpolated twice (default: the scans' own grids)",
    )
    parser.add_argument(
        "--max-mib",
        type=options.positive_number,
        default=float("inf"),
        metavar="M",
        help="write nothing if the files together are larger",
    )
    options.add_cache(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")


def run(arguments: argparse.Namespace) -> int:
    """Pack the datasets, and print the size of each file."""
    from ..data.packed import SUFFIX, to_bytes

    make_folder(arguments.out)
    files = {}
    for folder in arguments.data:
        packed = pack_dataset(arguments, folder)
        path = arguments.out / f"{packed.dataset.name}{SUFFIX}"
        if path in files:
            raise ConfigError(f"Two of the datasets are named {packed.dataset.name}.")
        files[path] = to_bytes(packed)
        cases, size = len(packed.dataset.cases), len(files[path]) / MIB
        print(f"{path}: {cases} cases, {size:.1f} MiB", flush=True)
    total = sum(map(len, files.values())) / MIB
    if total > arguments.max_mib:
        raise ConfigError(
            f"{total:.1f} MiB is more than --max-mib {arguments.max_mib:g}; nothing was written. "
            "Give a coarser --spacing, or fewer cases by --set data.cases=[...]."
        )
    for path, content in files.items():
        with report_os_errors(path), atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return 0


def pack_dataset(arguments: argparse.Namespace, folder: Path) -> "PackedDataset":
    """Check and pack one dataset as its training prepares it."""
    from ..data.cases import default_cache
    from ..data.packed import pack
    from ..engine.source_domain import intensity_rule, open_source

    config, grid = training_of(arguments)
    source = open_source(folder, config.data, say)
    source.require_scans("Packing")
    return pack(
        source.dataset,
        intensity_rule(config.data, source),
        config.data.smoothing,
        arguments.cache or default_cache(),
        replace(grid, spacing=tuple(arguments.spacing)) if arguments.spacing else None,
    )


def training_of(
    arguments: argparse.Namespace,
) -> "tuple[SamConfig | TrainingConfig, GridSpec]":
    """Return the configuration of the training to pack for, and the grid of its windows."""
    from ..engine.config import configured
    from ..segmentation.presets import preset

    if arguments.preset == SAM:
        from ..sam.from_scratch import SLICES, SamConfig

        return configured(SamConfig(), arguments.config, arguments.set), SLICES
    config = configured(preset(arguments.preset), arguments.config, arguments.set)
    return config, config.grid
