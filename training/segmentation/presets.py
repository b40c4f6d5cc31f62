# SPDX-License-Identifier: Apache-2.0
"""Presets: configurations for a region of the body and a size of network."""

from dataclasses import replace

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.network import NetworkConfig
from SRCSMSegmenterLib.schema import nearest

from ..augment.spatial import AugmentationConfig
from .config import OptimisationConfig, PairsConfig, TrainingConfig

PAPER_NETWORK = NetworkConfig(classes=2)
# Slabs of a few slices, several a step: on a CPU they learn about twice as fast as one deep window
# of as many voxels, since each slab gets its own case, place and random looks.
FAST_NETWORK = NetworkConfig(
    classes=2,
    channels=(32, 64, 96, 128),
    stem=(2, 2, 1),
    pooling=(2, 2, 1),
    norm="instance",
    dropout=0.0,
)
FAST_RECIPE = OptimisationConfig(
    steps=6000,
    batch=4,
    learning_rate=1e-3,
    schedule="cosine",
    dice="mean",
    cross_entropy=1.0,
)


# The slice network of Chen et al. 2025. Its 100 epochs are of 40 steps, 2560 slices.
ICM_NETWORK = NetworkConfig(
    classes=2,
    channels=(32, 64, 128, 256, 256),
    kernel=(3, 3, 1),
    pooling=(2, 2, 1),
    norm="switchable",
    dropout=0.0,
    pool_by="max",
    decoder=(32, 32, 64, 128),
)
ICM = TrainingConfig(
    grid=GridSpec((256, 208, 1), (1.5, 1.5, 3.0)),
    network=ICM_NETWORK,
    augmentation=AugmentationConfig(strong=1.0),
    optimisation=OptimisationConfig(
        steps=4000,
        batch=64,
        learning_rate=1e-3,
        schedule="icm",
        l2=1e-5,
        optimiser="adamw",
        dice="batch",
        ema=0.0,
        patience=40,
    ),
    pairs=PairsConfig(use=True),
    random_convolution="off",
    validate_every=40,
)


SHORT_AXIS = TrainingConfig(
    # Of 6 slices, oneDNN's gradients in bfloat16 are not finite (torch 2.15 on a CPU with AMX).
    grid=GridSpec((128, 128, 8), (1.5, 1.5, 8.0), axes="slices"),
    network=FAST_NETWORK,
    augmentation=AugmentationConfig(rotation=(0.1, 0.1, 3.1416), elastic=8.0),
    optimisation=FAST_RECIPE,
)


def _paper(size: tuple, spacing: tuple) -> TrainingConfig:
    return TrainingConfig(grid=GridSpec(size, spacing), network=PAPER_NETWORK)


PRESETS: dict[str, TrainingConfig] = {
    "abdomen-paper": _paper((160, 128, 160), (2.4, 2.4, 2.4)),
    "abdomen-half": _paper((80, 64, 80), (4.8, 4.8, 4.8)),
    "abdomen-fast": TrainingConfig(
        grid=GridSpec((128, 96, 8), (3.2, 3.2, 5.0)),
        network=FAST_NETWORK,
        optimisation=FAST_RECIPE,
    ),
    # The demonstration's: in slices, as two cores with AVX2 alone have minutes for it, and in fp32,
    # which takes 15 % longer than bf16 at this size and is the same on every CPU.
    "abdomen-tiny": TrainingConfig(
        grid=GridSpec((64, 48, 8), (6.4, 6.4, 5.0)),
        network=replace(FAST_NETWORK, channels=(16, 32, 64), kernel=(3, 3, 1)),
        optimisation=replace(
            FAST_RECIPE, steps=3000, batch=2, learning_rate=2e-3, precision="fp32"
        ),
        validate_every=0,
    ),
    "heart-paper": _paper((128, 128, 128), (1.5, 1.5, 1.5)),
    "heart-small": _paper((96, 96, 96), (2.0, 2.0, 2.0)),
    "heart-fast": SHORT_AXIS,
    # The published recipe for cine MR is the whole heart's, on whose labels it is trained; ours is
    # for stacks of short-axis slices.
    "cine-paper": _paper((128, 128, 128), (1.5, 1.5, 1.5)),
    "cine-fast": SHORT_AXIS,
    "prostate-paper": _paper((128, 128, 128), (0.75, 0.75, 0.75)),
    "prostate-fast": TrainingConfig(
        grid=GridSpec((128, 128, 8), (0.75, 0.75, 3.0)),
        network=FAST_NETWORK,
        augmentation=AugmentationConfig(translation=10.0, elastic=6.0),
        optimisation=FAST_RECIPE,
    ),
    "icm": ICM,
    # Of fixed planes, so that an axial CT of the chest gives the slices that an X-ray looks like.
    "icm-spine": replace(ICM, grid=GridSpec((256, 256, 1), (1.0, 1.0, 4.0), axes="sagittal")),
    "icm-chest": replace(ICM, grid=GridSpec((256, 256, 1), (1.5, 1.5, 3.0), axes="coronal")),
    "icm-fast": replace(
        ICM,
        grid=GridSpec((128, 96, 1), (3.2, 3.2, 5.0)),
        network=replace(
            ICM_NETWORK, channels=(32, 64, 96, 96), decoder=(32, 32, 48), stem=(2, 2, 1)
        ),
        optimisation=replace(
            ICM.optimisation,
            steps=2000,
            batch=16,
            cross_entropy=1.0,
            ema=0.99,
            patience=0,
        ),
        validate_every=500,
    ),
}
"""Region and size; "paper" is the published recipe, "fast" trains on two CPU cores. Those of
"icm" train a slice network on pairs, of the abdomen unless they say of what; their paper (Chen et
al. 2025) tells no grid."""


def preset(name: str) -> TrainingConfig:
    """Return the preset of a name.

    Raises:
        ConfigError: no preset has that name; the message names the nearest one.
    """
    if name not in PRESETS:
        raise ConfigError(
            f'No preset "{name}"{nearest(name, PRESETS)}; there are: {", ".join(PRESETS)}.'
        )
    return PRESETS[name]
