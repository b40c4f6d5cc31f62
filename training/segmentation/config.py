# SPDX-License-Identifier: Apache-2.0
"""Configuration of a segmentation training."""

from dataclasses import dataclass, field
from typing import ClassVar

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.network import NetworkConfig

from ..augment.degradation import DegradationConfig
from ..augment.random_convolution import MODES
from ..augment.regions import RegionsConfig
from ..augment.spatial import AugmentationConfig
from ..engine.config import PRECISIONS, SCHEDULES, SMOOTHING, Recipe, ScansConfig
from ..engine.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Settings, choice, key
from ..engine.losses import DICE


@dataclass(frozen=True)
class DataConfig(ScansConfig):
    """The scans, the place of the windows in them, and the labels to tell apart.

    Attributes:
        foreground: share of the windows drawn around a labelled voxel, the others anywhere.
        outputs: names of the labels that the network tells apart; () takes all. The dataset's other
            labels are background to it, but regions of their own to random convolution.
    """

    foreground: float = key(0.5, SHARE, paper="a landmark of each case is the window's centre")
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimisationConfig(Recipe):
    """The recipe and the loss of the U-Net; defaults are those of Thaler et al. 2026.

    Attributes:
        dice: "generalised" (the paper), "mean" over the classes present in a window, or "batch"
            (Chen et al. 2025).
        cross_entropy: weight of a cross-entropy term beside the Dice loss; 0 in the paper.
        optimiser: "adam", or "adamw", whose `l2` is decoupled and acts on all parameters.
    """

    steps: int = key(50_000, COUNT, paper="50,000 (ICM: 100 epochs)")
    batch: int = key(1, COUNT, paper="1 (ICM: 64)")
    accumulation: int = key(1, COUNT, paper="1")
    learning_rate: float = key(5e-5, POSITIVE, paper="5e-5 (ICM: 1e-3)")
    schedule: str = key("constant", choice(*SCHEDULES), paper="constant (ICM: icm)")
    ema: float = key(0.999, SMOOTHING, paper="0.999 (ICM: none)")
    precision: str = key("auto", choice(*PRECISIONS), paper="mixed")
    l2: float = key(1e-6, NOT_NEGATIVE, paper="1e-6 (ICM: 1e-5)")
    clip_factor: float = key(5.0, POSITIVE, paper="5")
    clip_start: float = key(10.0, POSITIVE, paper="10")
    clip_rate: float = key(0.01, SHARE, paper="0.01")
    nan_redraws: int = key(100, NOT_NEGATIVE, paper="100")
    patience: int = key(0, NOT_NEGATIVE, paper="0 (ICM: 40)")
    dice: str = key("generalised", choice(*DICE), paper="generalised (ICM: batch)")
    cross_entropy: float = key(0.0, NOT_NEGATIVE, paper="0")
    optimiser: str = key("adam", choice("adam", "adamw"), paper="adam (ICM: adamw)")


@dataclass(frozen=True)
class PairsConfig(Settings):
    """A training on several views of every window (Chen et al. 2025; pairs.py).

    Attributes:
        use: train on pairs; if false, the other settings have no effect.
        styled: folders of restyled slices (`srcsm style swap`) of the dataset.
        contrast: weight of NT-Xent; 0 trains without.
        temperature: of NT-Xent.
        projection: channels of the features that NT-Xent compares.
    """

    use: bool = key(False, paper="false (ICM: true)")
    styled: tuple[str, ...] = ()
    contrast: float = key(1.0, NOT_NEGATIVE, paper="1")
    temperature: float = key(0.2, POSITIVE, paper="0.2")
    projection: int = key(128, COUNT, paper="128")

    section: ClassVar[str] = "pairs."


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """Everything that decides the result of a training, beside the dataset.

    Attributes:
        grid: Window and resolution of the network. Paper: abdomen 160 x 128 x 160 voxels of 2.4 mm,
            heart 128 x 128 x 128 of 1.5 mm, prostate 128 x 128 x 128 of 0.75 mm.
        random_convolution: "off", "global", "hard" or "smoothed" (the method).
        start: name or folder of a trained network whose weights the training starts from, outputs
            matched by the names of their labels; "" starts from random ones.
        seed: every random draw of step s on process r is a function of (seed, s, r).
        checkpoint_minutes: time between two checkpoints.
        validate_every: steps between two validations; 0 validates at the end only.
    """

    grid: GridSpec
    network: NetworkConfig
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    random_convolution: str = key("smoothed", choice(*MODES), paper="smoothed (ICM: off)")
    start: str = ""
    seed: int = key(0, NOT_NEGATIVE)
    checkpoint_minutes: float = key(5.0, NOT_NEGATIVE, unit="minutes")
    validate_every: int = key(1000, NOT_NEGATIVE, unit="steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        for axis, (size, divisor) in enumerate(
            zip(self.grid.size, self.network.divisor, strict=True)
        ):
            if size % divisor:
                raise ConfigError(
                    f"grid.size {self.grid.size} along {'IJK'[axis]} is not a multiple of "
                    f"{divisor}, which the network's stem and pooling need."
                )
