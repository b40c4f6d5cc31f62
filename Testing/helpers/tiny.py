# SPDX-License-Identifier: Apache-2.0
"""A dataset and a training so small that a test can run them on one core."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState

from srcsm_training.augment.spatial import AugmentationConfig
from srcsm_training.segmentation.config import DataConfig, OptimisationConfig, TrainingConfig
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.network import NetworkConfig
from SRCSMSegmenterLib.volume_io import write_volume

SHAPE = (24, 22, 20)
"""Voxels of a case along (K, J, I)."""

SPACING = (2.5, 2.0, 3.0)
"""mm along (I, J, K): 50 x 44 x 72 mm, along K more than the field of view of `config`."""

AFFINE = np.array(
    [
        [-SPACING[0], 0.0, 0.0, 20.0],
        [0.0, -SPACING[1], 0.0, -15.0],
        [0.0, 0.0, SPACING[2], 7.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""From (I, J, K) to RAS mm."""

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def phantom(seed: int, modality: str = "CT") -> tuple[np.ndarray, np.ndarray]:
    """Image (HU, or any positive numbers for MR) and labels, (K, J, I): a liver and a spleen."""
    random = np.random.default_rng(seed)
    k, j, i = np.indices(SHAPE) + random.uniform(-1, 1, (3, 1, 1, 1))
    labels = np.zeros(SHAPE, np.uint8)
    labels[(k - 9) ** 2 / 64 + (j - 11) ** 2 / 30 + (i - 6) ** 2 / 16 < 1] = 1
    labels[(k - 15) ** 2 / 16 + (j - 13) ** 2 / 16 + (i - 14) ** 2 / 9 < 1] = 2
    body = (j - 10.5) ** 2 / 100 + (i - 9.5) ** 2 / 90 < 1
    tissues = {"CT": (-1000, 0, 120, 220), "MR": (5, 300, 150, 600)}[modality]
    image = np.select([labels == 2, labels == 1, body], tissues[:0:-1], tissues[0]).astype(float)
    image += random.normal(0, 5, SHAPE)
    return (image if modality == "CT" else image.clip(0)).round().astype(np.int16), labels


def write_case(folder: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    """One case of an nnU-Net raw dataset."""
    for path, array in ((f"imagesTr/{name}_0000", image), (f"labelsTr/{name}", labels)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_volume(folder / f"{path}.nii.gz", Volume(array, Geometry(array.shape[::-1], AFFINE)))


def write_dataset(folder: Path, cases: int = 3, modality: str = "CT") -> Path:
    """An nnU-Net raw dataset of cases a, b, c ..."""
    for number in range(cases):
        write_case(folder, "abcdefgh"[number], *phantom(number, modality))
    description = {
        "channel_names": {"0": modality},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def config(**optimisation: object) -> TrainingConfig:
    """Six steps of a network with dropout; validation after every second one."""
    recipe = OptimisationConfig(steps=6, batch=2, learning_rate=1e-3, precision="fp32")
    return TrainingConfig(
        grid=GridSpec((16, 16, 8), (3.0, 2.75, 6.0)),
        network=NetworkConfig(classes=3, channels=(4, 6), dropout=0.2),
        data=DataConfig(folds=3),
        augmentation=AugmentationConfig(translation=4.0, elastic=3.0, control_points=5),
        optimisation=replace(recipe, **optimisation),
        validate_every=2,
    )


def forget_accelerator() -> None:
    """`accelerate` keeps device and precision for the life of a process; tests want others."""
    AcceleratorState._reset_state(reset_partial_state=True)
