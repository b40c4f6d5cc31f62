# SPDX-License-Identifier: Apache-2.0
"""Configuration of all stages of a style intervention: one file, a section for each stage."""

from dataclasses import dataclass, field
from typing import ClassVar

from SRCSMSegmenterLib.errors import ConfigError

from ..engine.config import PRECISIONS, StepsConfig, one_of


@dataclass(frozen=True)
class PrepareConfig:
    """The slicing of scans into pictures.

    Attributes:
        cases: shell patterns of the case names to use.
        axis: "auto" (`Geometry.slice_axis`) or "I", "J", "K": the voxel axis that is sliced.
        every: take every n-th slice.
        field_of_view: mm of a picture's side; 0 takes the smallest square that holds the slice.
        window: CT only, HU; these become 0 and 255.
        percentiles: MR only; these percentiles of the scan become 0 and 255.
        foreground: smallest share of labelled pixels of a slice that is kept.
        empty: share of the slices without any labelled pixel that are kept as well.
        style: style of the slices, a key of the prompts file; "auto" is "ct" or "mr".
    """

    cases: tuple[str, ...] = ("*",)
    axis: str = "auto"
    every: int = 1
    field_of_view: float = 0.0
    window: tuple[float, float] = (-125.0, 275.0)
    percentiles: tuple[float, float] = (0.5, 99.5)
    foreground: float = 0.002
    empty: float = 0.0
    style: str = "auto"

    def __post_init__(self) -> None:
        one_of("prepare.axis", self.axis, ("auto", "I", "J", "K"))
        if not self.window[0] < self.window[1]:
            raise ConfigError(f"prepare.window is [lower, upper] in HU, not {self.window}.")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ConfigError(f"prepare.percentiles are two of 0 to 100, not {self.percentiles}.")
        if self.every < 1 or self.field_of_view < 0:
            raise ConfigError("prepare.every is at least 1, prepare.field_of_view 0 or more.")


@dataclass(frozen=True)
class PhantomConfig:
    """Phantom slices to train a small base on.

    Attributes:
        patients: how many; patient n has the seed `seed + n`.
        slices: of each patient, each in every style.
        styles: of phantom_slices.py.
    """

    patients: int = 300
    slices: int = 6
    seed: int = 100_000
    styles: tuple[str, ...] = ("ct", "t1", "t2", "ultrasound")


@dataclass(frozen=True)
class StageConfig(StepsConfig):
    """The training of a stage's network; the classes below add what differs between stages.

    Attributes:
        weight_decay: AdamW's.
        clip: longest gradient.
        gradient_checkpointing: compute activations twice to store fewer of them.
        preview_every: steps between two previews; 0 makes one at the end only.
    """

    steps: int = 30_000
    learning_rate: float = 1e-5
    ema: float = 0.0
    weight_decay: float = 1e-2
    clip: float = 1.0
    gradient_checkpointing: bool = True
    preview_every: int = 2000

    # The losses of the stages have no random convolution to draw anew, and nothing validates them.
    nan_redraws: ClassVar[int] = 0
    patience: ClassVar[int] = 0
    clip_rate: ClassVar[float] = 0.01

    @property
    def clip_start(self) -> float:
        """Running mean of the clipped gradient norms at step 0."""
        return self.clip

    def gradient_limit(self, norm: float) -> float:
        """Return the longest gradient, whatever the running mean of their norms is."""
        return self.clip


@dataclass(frozen=True)
class TuneConfig(StageConfig):
    """Instance tuning (Chen et al. 2025); defaults are those of DGInStyle, ECCV 2024.

    Attributes:
        lora: rank of low-rank updates of the attention, which alone are then trained, for small
            GPUs (give a learning rate of 1e-4 or so); 0 trains the whole U-Net.
    """

    accumulation: int = 2
    learning_rate: float = 2e-6
    lora: int = 0


@dataclass(frozen=True)
class ControlConfig(StageConfig):
    """ControlNet (Chen et al. 2025); rate, batch and accumulation are DGInStyle's.

    Attributes:
        rare_class_temperature: a label is drawn with a weight of exp((1 - its share of the
            labelled pixels) / temperature), then a slice that shows it; 0 draws slices evenly.
            DAFormer's 0.01 is for street scenes, where every picture shows most classes.
        empty_prompts: share of the slices that are shown without a prompt, so that guidance works.
    """

    batch: int = 2
    accumulation: int = 4
    rare_class_temperature: float = 0.1
    empty_prompts: float = 0.1


@dataclass(frozen=True)
class SamplingConfig:
    """The sampler.

    Attributes:
        steps: of DPM-Solver++ (second order).
        guidance: classifier-free; 1 is none.
        control_scale: factor on what the ControlNet adds.
    """

    steps: int = 25
    guidance: float = 7.5
    control_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError("sampling.steps is at least 1.")


@dataclass(frozen=True)
class SwapConfig:
    """Style swap (DGInStyle, ECCV 2024; Chen et al. 2025).

    Attributes:
        styles: of the prompts file; all but the source's own if none is named.
        per_slice: how many different ones each slice gets, drawn for it; 0: all.
        every: restyle every n-th slice.
        batch: pictures drawn together.
        precision: "auto", the fastest of the device, "fp32", "bf16" or "fp16".
    """

    styles: tuple[str, ...] = ()
    per_slice: int = 3
    every: int = 1
    batch: int = 8
    precision: str = "auto"

    def __post_init__(self) -> None:
        one_of("swap.precision", self.precision, PRECISIONS)
        if min(self.batch, self.every) < 1 or self.per_slice < 0:
            raise ConfigError(
                "swap.batch and swap.every are at least 1, swap.per_slice is at least 0."
            )


@dataclass(frozen=True)
class CheckConfig:
    """Thresholds below which a restyled slice is set aside (measures.py).

    Attributes:
        moved: distance of the organs' histograms to the source slice's, a share of the grey range;
            one organ in two source slices of different patients is 0.03 to 0.06 apart.
        edges: agreement of the picture's edges with the mask; 0.5 is chance.
        dice: mean Dice of the source-trained network, if one is given; 0 only reports it, as a
            network that does not generalise fails on good slices too.
    """

    moved: float = 0.08
    edges: float = 0.58
    dice: float = 0.0


@dataclass(frozen=True)
class AutoencoderConfig(StageConfig):
    """The small base's autoencoder.

    Attributes:
        channels: of the levels; each but the first halves the picture.
        crop: pixels; it learns on random squares of this size, many of them, which costs less
            than whole pictures and teaches it as much.
        kl: weight of the Kullback-Leibler term.
    """

    steps: int = 2500
    batch: int = 16
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False
    preview_every: int = 0
    channels: tuple[int, ...] = (16, 32, 64)
    crop: int = 48
    kl: float = 1e-5


@dataclass(frozen=True)
class DenoiserConfig(StageConfig):
    """The small base's U-Net and text encoder, trained together.

    Attributes:
        channels: of the U-Net's levels.
        attention: number of the deepest levels that attend to the prompt.
        heads: of each attention layer, of both networks.
        text_width, text_layers, text_length: the text encoder's, in channels, layers and tokens.
        vocabulary: largest number of tokens; 514 spell any text, the others are words and parts
            of words.
        empty_prompts: share of the slices that are shown without a prompt.
    """

    steps: int = 4000
    batch: int = 16
    learning_rate: float = 5e-4
    schedule: str = "cosine"
    ema: float = 0.999
    gradient_checkpointing: bool = False
    preview_every: int = 1000
    channels: tuple[int, ...] = (64, 128, 192)
    attention: int = 2
    heads: int = 4
    text_width: int = 64
    text_layers: int = 2
    text_length: int = 24
    vocabulary: int = 1000
    empty_prompts: float = 0.1


@dataclass(frozen=True)
class SmallBaseConfig:
    """A small base model, trained here."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)

    def __post_init__(self) -> None:
        if self.autoencoder.precision != self.denoiser.precision:
            raise ConfigError("base.autoencoder.precision and base.denoiser.precision are one.")


@dataclass(frozen=True)
class StyleConfig:
    """The configuration of all stages.

    Attributes:
        size: pixels of a slice's side.
        prompts: an anatomy with a prompts file in training/configs, or a path of one.
        seed: every random draw is a function of it.
        checkpoint_minutes: time between two checkpoints.
    """

    size: int = 512
    prompts: str = "abdomen"
    seed: int = 0
    checkpoint_minutes: float = 15.0
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    base: SmallBaseConfig = field(default_factory=SmallBaseConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    swap: SwapConfig = field(default_factory=SwapConfig)
    check: CheckConfig = field(default_factory=CheckConfig)

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ConfigError(f"size is the pixels of a slice's side, not {self.size}.")
