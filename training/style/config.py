# SPDX-License-Identifier: Apache-2.0
"""Configuration of all stages of a style intervention: one file, a section for each stage."""

from dataclasses import dataclass, field
from typing import ClassVar

from SRCSMSegmenterLib.errors import ConfigError

from ..engine.config import PRECISIONS, SCHEDULES, SMOOTHING, StepsConfig
from ..engine.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range, Settings, choice, key


@dataclass(frozen=True)
class PrepareConfig(Settings):
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
    axis: str = key("auto", choice("auto", "I", "J", "K"))
    every: int = key(1, COUNT)
    field_of_view: float = key(0.0, NOT_NEGATIVE, unit="mm")
    window: tuple[float, float] = key((-125.0, 275.0), unit="HU")
    percentiles: tuple[float, float] = key((0.5, 99.5), Range(least=0, most=100), unit="%")
    foreground: float = key(0.002, SHARE)
    empty: float = key(0.0, SHARE)
    style: str = "auto"

    section: ClassVar[str] = "prepare."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.window[0] < self.window[1]:
            raise ConfigError(f"prepare.window is [lower, upper] in HU, not {self.window}.")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ConfigError(f"prepare.percentiles are two of 0 to 100, not {self.percentiles}.")


@dataclass(frozen=True)
class PhantomConfig(Settings):
    """Phantom slices to train a small base on.

    Attributes:
        patients: how many; patient n has the seed `seed + n`.
        slices: of each patient, each in every style.
        styles: of phantom_slices.py.
    """

    patients: int = key(300, COUNT)
    slices: int = key(6, COUNT)
    seed: int = key(100_000, NOT_NEGATIVE)
    styles: tuple[str, ...] = ("ct", "t1", "t2", "ultrasound")

    section: ClassVar[str] = "phantom."


@dataclass(frozen=True)
class StageConfig(StepsConfig):
    """The training of a stage's network; the classes below add what differs between stages.

    Attributes:
        weight_decay: AdamW's.
        clip: longest gradient.
        gradient_checkpointing: compute activations twice to store fewer of them.
        preview_every: steps between two previews; 0 makes one at the end only.
    """

    steps: int = key(30_000, COUNT)
    learning_rate: float = key(1e-5, POSITIVE)
    ema: float = key(0.0, SMOOTHING)
    weight_decay: float = key(1e-2, NOT_NEGATIVE)
    clip: float = key(1.0, POSITIVE)
    gradient_checkpointing: bool = True
    preview_every: int = key(2000, NOT_NEGATIVE, unit="steps")

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

    steps: int = key(30_000, COUNT, paper="30,000 (DGInStyle)")
    batch: int = key(1, COUNT, paper="1 (DGInStyle)")
    accumulation: int = key(2, COUNT, paper="2 (DGInStyle)")
    learning_rate: float = key(2e-6, POSITIVE, paper="2e-6 (DGInStyle)")
    precision: str = key("auto", choice(*PRECISIONS), paper="fp16 (DGInStyle)")
    gradient_checkpointing: bool = key(True, paper="true (DGInStyle)")
    lora: int = key(0, NOT_NEGATIVE, paper="0")

    section: ClassVar[str] = "tune."


@dataclass(frozen=True)
class ControlConfig(StageConfig):
    """ControlNet (Chen et al. 2025); rate, batch and accumulation are DGInStyle's.

    Attributes:
        rare_class_temperature: a label is drawn with a weight of exp((1 - its share of the
            labelled pixels) / temperature), then a slice that shows it; 0 draws slices evenly.
            DAFormer's 0.01 is for street scenes, where every picture shows most classes.
        empty_prompts: share of the slices that are shown without a prompt, so that guidance works.
    """

    steps: int = key(30_000, COUNT, paper="not known")
    batch: int = key(2, COUNT, paper="2 (DGInStyle)")
    accumulation: int = key(4, COUNT, paper="4 (DGInStyle)")
    learning_rate: float = key(1e-5, POSITIVE, paper="1e-5 (DGInStyle)")
    rare_class_temperature: float = key(0.1, NOT_NEGATIVE, paper="0.01 (DAFormer, street scenes)")
    empty_prompts: float = key(0.1, SHARE, paper="not known")

    section: ClassVar[str] = "control."


@dataclass(frozen=True)
class SamplingConfig(Settings):
    """The sampler.

    Attributes:
        steps: of DPM-Solver++ (second order).
        guidance: classifier-free; 1 is none.
        control_scale: factor on what the ControlNet adds.
    """

    steps: int = key(25, COUNT, paper="not known")
    guidance: float = key(7.5, NOT_NEGATIVE, paper="not known")
    control_scale: float = key(1.0, NOT_NEGATIVE, paper="1")

    section: ClassVar[str] = "sampling."


@dataclass(frozen=True)
class SwapConfig(Settings):
    """Style swap (DGInStyle, ECCV 2024; Chen et al. 2025).

    Attributes:
        styles: of the prompts file; all but the source's own if none is named.
        per_slice: how many different ones each slice gets, drawn for it; 0: all.
        every: restyle every n-th slice.
        batch: pictures drawn together.
        precision: "auto", the fastest of the device, "fp32", "bf16" or "fp16".
    """

    styles: tuple[str, ...] = ()
    per_slice: int = key(3, NOT_NEGATIVE, paper="not known")
    every: int = key(1, COUNT)
    batch: int = key(8, COUNT)
    precision: str = key("auto", choice(*PRECISIONS))

    section: ClassVar[str] = "swap."


@dataclass(frozen=True)
class CheckConfig(Settings):
    """Thresholds below which a restyled slice is set aside (measures.py).

    Attributes:
        moved: distance of the organs' histograms to the source slice's, a share of the grey range;
            one organ in two source slices of different patients is 0.03 to 0.06 apart.
        edges: agreement of the picture's edges with the mask; 0.5 is chance.
        dice: mean Dice of the source-trained network, if one is given; 0 only reports it, as a
            network that does not generalise fails on good slices too.
    """

    moved: float = key(0.08, SHARE, paper="no check")
    edges: float = key(0.58, SHARE, paper="no check")
    dice: float = key(0.0, SHARE, paper="no check")

    section: ClassVar[str] = "check."


@dataclass(frozen=True)
class AutoencoderConfig(StageConfig):
    """The small base's autoencoder.

    Attributes:
        channels: of the levels; each but the first halves the picture.
        crop: pixels; it learns on random squares of this size, many of them, which costs less
            than whole pictures and teaches it as much.
        kl: weight of the Kullback-Leibler term.
    """

    steps: int = key(2500, COUNT)
    batch: int = key(16, COUNT)
    learning_rate: float = key(2e-3, POSITIVE)
    schedule: str = key("cosine", choice(*SCHEDULES))
    weight_decay: float = key(0.0, NOT_NEGATIVE)
    gradient_checkpointing: bool = False
    preview_every: int = key(0, NOT_NEGATIVE, unit="steps")
    channels: tuple[int, ...] = key((16, 32, 64), COUNT)
    crop: int = key(48, COUNT, unit="pixels")
    kl: float = key(1e-5, NOT_NEGATIVE)

    section: ClassVar[str] = "base.autoencoder."


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

    steps: int = key(4000, COUNT)
    batch: int = key(16, COUNT)
    learning_rate: float = key(5e-4, POSITIVE)
    schedule: str = key("cosine", choice(*SCHEDULES))
    ema: float = key(0.999, SMOOTHING)
    gradient_checkpointing: bool = False
    preview_every: int = key(1000, NOT_NEGATIVE, unit="steps")
    channels: tuple[int, ...] = key((64, 128, 192), COUNT)
    attention: int = key(2, NOT_NEGATIVE)
    heads: int = key(4, COUNT)
    text_width: int = key(64, COUNT, unit="channels")
    text_layers: int = key(2, COUNT)
    text_length: int = key(24, COUNT, unit="tokens")
    vocabulary: int = key(1000, Range(least=514))
    empty_prompts: float = key(0.1, SHARE)

    section: ClassVar[str] = "base.denoiser."


@dataclass(frozen=True)
class SmallBaseConfig:
    """A small base model, trained here."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)

    def __post_init__(self) -> None:
        if self.autoencoder.precision != self.denoiser.precision:
            raise ConfigError("base.autoencoder.precision and base.denoiser.precision are one.")


@dataclass(frozen=True)
class StyleConfig(Settings):
    """The configuration of all stages.

    Attributes:
        size: pixels of a slice's side.
        prompts: an anatomy with a prompts file in training/configs, or a path of one.
        seed: every random draw is a function of it.
        checkpoint_minutes: time between two checkpoints.
    """

    size: int = key(512, Range(least=8), unit="pixels", paper="512 (DGInStyle)")
    prompts: str = "abdomen"
    seed: int = key(0, NOT_NEGATIVE)
    checkpoint_minutes: float = key(15.0, NOT_NEGATIVE, unit="minutes")
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    base: SmallBaseConfig = field(default_factory=SmallBaseConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    swap: SwapConfig = field(default_factory=SwapConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
