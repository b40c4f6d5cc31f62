# SPDX-License-Identifier: Apache-2.0
"""Configuration of the SAM paper's coarse network (deeplab.py)."""

from dataclasses import dataclass, field

from SRCSMSegmenterLib.errors import ConfigError

from ..engine.config import SMOOTHING, CasesConfig, Recipe
from ..engine.keys import COUNT, NOT_NEGATIVE, POSITIVE, Settings, key


@dataclass(frozen=True)
class DeepLabRecipe(Recipe):
    """The optimisation; defaults are those of Wang et al. but the length."""

    steps: int = key(10_000, COUNT, paper="100 epochs")
    batch: int = key(8, COUNT, paper="8")
    learning_rate: float = key(1e-3, POSITIVE, paper="1e-3")
    l2: float = key(0.0, NOT_NEGATIVE)
    ema: float = key(0.0, SMOOTHING, paper="0")


@dataclass(frozen=True)
class DeepLabConfig(Settings):
    """The configuration.

    Attributes:
        size: of the square that a slice is scaled to.
        seed: every random draw of step s on process r is a function of (seed, s, r).
        checkpoint_minutes: time between two checkpoints.
        validate_every: steps between two validations; 0 validates at the end only.
    """

    data: CasesConfig = field(default_factory=CasesConfig)
    size: int = key(512, COUNT, unit="pixels", paper="512")
    optimisation: DeepLabRecipe = field(default_factory=DeepLabRecipe)
    seed: int = key(0, NOT_NEGATIVE)
    checkpoint_minutes: float = key(5.0, NOT_NEGATIVE, unit="minutes")
    validate_every: int = key(500, NOT_NEGATIVE, unit="steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimisation.batch < 2:
            raise ConfigError("optimisation.batch is at least 2: batch normalisation needs two.")
