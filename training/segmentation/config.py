# SPDX-License-Identifier: Apache-2.0
"""Configuration of a segmentation training."""

from dataclasses import dataclass, field

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.network import NetworkConfig

from ..augment.degradation import DegradationConfig
from ..augment.random_convolution import MODES
from ..augment.regions import RegionsConfig
from ..augment.spatial import AugmentationConfig
from ..engine.config import Recipe, ScansConfig, one_of
from ..engine.losses import DICE


@dataclass(frozen=True)
class DataConfig(ScansConfig):
    """The scans, the place of the windows in them, and the labels to tell apart.

    Attributes:
        foreground: share of the windows drawn around a labelled voxel, the others anywhere.
        outputs: names of the labels that the network tells apart; () takes all. The dataset's other
            labels are background to it, but regions of their own to random convolution.
    """

    foreground: float = 0.5
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

    dice: str = "generalised"
    cross_entropy: float = 0.0
    optimiser: str = "adam"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("optimisation.dice", self.dice, tuple(DICE))
        one_of("optimisation.optimiser", self.optimiser, ("adam", "adamw"))


@dataclass(frozen=True)
class PairsConfig:
    """A training on several views of every window (Chen et al. 2025; pairs.py).

    Attributes:
        use: train on pairs; if false, the other settings have no effect.
        styled: folders of restyled slices (`srcsm style swap`) of the dataset.
        contrast: weight of NT-Xent; 0 trains without.
        temperature: of NT-Xent.
        projection: channels of the features that NT-Xent compares.
    """

    use: bool = False
    styled: tuple[str, ...] = ()
    contrast: float = 1.0
    temperature: float = 0.2
    projection: int = 128

    def __post_init__(self) -> None:
        if self.contrast < 0 or self.temperature <= 0 or self.projection < 1:
            raise ConfigError(
                "pairs.contrast is 0 or more, pairs.temperature more than 0, and pairs.projection "
                "at least 1."
            )


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the result of a training, beside the dataset.

    Attributes:
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
    random_convolution: str = "smoothed"
    start: str = ""
    seed: int = 0
    checkpoint_minutes: float = 5.0
    validate_every: int = 1000

    def __post_init__(self) -> None:
        one_of("random_convolution", self.random_convolution, MODES)
        for axis, (size, divisor) in enumerate(
            zip(self.grid.size, self.network.divisor, strict=True)
        ):
            if size % divisor:
                raise ConfigError(
                    f"grid.size {self.grid.size} along {'IJK'[axis]} is not a multiple of "
                    f"{divisor}, which the network's stem and pooling need."
                )
