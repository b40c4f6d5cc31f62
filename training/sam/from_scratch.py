# SPDX-License-Identifier: Apache-2.0
"""Training of the small SAM from nothing on one domain.

Encoder, prompt encoder and decoder are trained, with random looks of labels and regions as the
augmentation that makes the SAM useful on another modality. Prompts are boxes with a coarse
network's errors, at times with points or a mask prompt beside them. The estimate of the mask's IoU
is trained too. The best weights are chosen by true boxes on validation cases of the source, as they
are and, if the training draws regions, under random looks as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.sam.models import SMALL, SamModel, load_sam, save_sam
from SAMRefineLib.sam.pixels import SRCSM, PixelRule, to_pixels
from SAMRefineLib.sam.small_sam import SmallSamConfig, build_small_sam
from SRCSMSegmenterLib.endings import own_name
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import GridSpec

from ..augment.random_convolution import MODES
from ..augment.regions import RegionsConfig, random_looks
from ..data.cases import PreparedCase
from ..engine.accelerator import accelerator_for
from ..engine.config import Recipe, ScansConfig, reading_start
from ..engine.fit import fit
from ..engine.keys import NOT_NEGATIVE, Settings, choice, key
from ..engine.limits import Limits
from ..engine.progress import Progress
from ..engine.run_folder import Run, RunResult, open_case_run
from ..engine.source_domain import intensity_rule, open_source
from .box_network import BoxSam, prompted_loss, true_box_dice, validation_tiles
from .card import LICENCE, sam_card, summary
from .prompts import PromptConfig, draw_prompts
from .tiles import BoxConfig, TileConfig, Tiles, draw_tiles

SLICES = GridSpec((1, 1, 1), (1.0, 1.0, 1.0), axes="slices")


LARGEST_TILES = 4
"""Side of the largest tiles of whole slices, in sides of the other tiles."""


@dataclass(frozen=True)
class SamConfig(Settings):
    """The configuration of a training from nothing.

    Attributes:
        regions: random looks of unlabelled tissue, as for a segmentation network.
        random_convolution: "off", "global", "hard" or "smoothed".
        start: name or folder of a small SAM whose weights the training starts from; "" starts from
            random ones.
        seed: every random draw of step s on process r is a function of (seed, s, r).
        checkpoint_minutes: time between two checkpoints.
        validate_every: steps between two validations; 0 validates at the end only.
    """

    network: SmallSamConfig = field(default_factory=SmallSamConfig)
    data: ScansConfig = field(default_factory=lambda: ScansConfig(folds=7, smoothing=0.0))
    tiles: TileConfig = field(default_factory=TileConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    optimisation: Recipe = field(
        default_factory=lambda: Recipe(
            steps=5000, batch=12, learning_rate=1e-3, schedule="cosine", l2=0.0
        )
    )
    random_convolution: str = key("smoothed", choice(*MODES))
    start: str = ""
    seed: int = key(0, NOT_NEGATIVE)
    checkpoint_minutes: float = key(5.0, NOT_NEGATIVE, unit="minutes")
    validate_every: int = key(500, NOT_NEGATIVE, unit="steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        side, canvas, window = self.tiles.side, self.network.canvas, self.network.window
        largest = LARGEST_TILES * side if self.tiles.whole_slices else side
        if largest > canvas or side % window:
            raise ConfigError(
                f"tiles.side, {side}, needs a network.canvas of {largest} pixels or more, not "
                f"{canvas}, and a network.window that divides it, not {window}."
            )


def run_sam_training(
    dataset_folder: Path,
    config: SamConfig,
    run_folder: Path,
    *,
    name: str | None = None,
    device: str = "auto",
    cache: Path | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> RunResult:
    """Check the dataset, prepare its cases, train (or resume), and export the SAM.

    Args:
        dataset_folder: an nnU-Net raw dataset, or a packed one.
        run_folder: made if it does not exist; a stopped run in it is resumed. The finished SAM is
            its folder ``model``.
        name: of the SAM; the run folder's by default.
        device, cache: see `segmentation.run.run_training`.

    Raises:
        DatasetError, ConfigError, DeviceError, VolumeError, TrainingError, CheckpointError.
    """
    computing = accelerator_for(device, config.optimisation.precision)
    tell = computing.introduce(limits.say)
    source = open_source(dataset_folder, config.data, tell, check=computing.main)
    rule = intensity_rule(config.data, source)
    run = open_case_run(run_folder, config, computing, source, tell=tell)
    count = len(source.training)
    run.tell(f"Preparing {count} training and {len(source.validation)} validation cases ...")
    with run.accelerator.main_process_first():
        scaled = source.prepared(rule, config.data.smoothing, SLICES, cache)
    prepared = [with_pixels(case, SRCSM, source.modality) for case in scaled]
    progress, network = train(run, prepared[:count], prepared[count:], limits)

    def save(folder: Path) -> None:
        sam = new_network(config)
        sam.load_state_dict(network.state_dict())
        called = name or own_name(run.folder)
        about = summary(run, source, progress)
        model = replace(sam.model, name=called, training=about)
        save_sam(folder, model, sam_card(model), LICENCE)

    return run.end(progress, run.folder / "model", save)


def train(
    run: Run,
    training: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    limits: Limits,
) -> tuple[Progress, BoxSam]:
    """Train a small SAM until its last step or a limit.

    Args:
        run: of a `SamConfig`.
        training, validation: cases in pixels (`with_pixels`); validation may be empty.

    Returns:
        The progress, and the network with the weights to keep.

    Raises:
        TrainingError, CheckpointError: see `fit`.
    """
    config, accelerator = run.config, run.accelerator
    recipe, device = config.optimisation, accelerator.device
    classes = len(run.labels) + 1
    torch.manual_seed(config.seed)
    network = (started_network(config) if config.start else new_network(config)).to(device)
    optimiser = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2
    )
    held_out = {"dice": [validation_tiles(case, config.tiles.side) for case in validation]}
    if config.regions.share and config.random_convolution != "off":
        held_out["randomised"] = [restyled(tiles, config) for tiles in held_out["dice"]]

    def draw(generator: torch.Generator) -> Tiles:
        return draw_tiles(training, config.tiles, config.boxes, recipe.batch, generator, device)

    def loss(model: nn.Module, tiles: Tiles, generator: torch.Generator) -> torch.Tensor:
        looks = random_looks(
            tiles.images, tiles.labels, config.random_convolution, config.regions, generator
        )
        masks = tiles.masks
        prompts = draw_prompts(
            tiles.boxes, masks, config.prompts, config.network.patch // 4, generator
        )
        with accelerator.autocast():
            logits, iou = model(looks, tiles.owner, prompts)
        return prompted_loss(logits, iou, masks)

    def validate(network: BoxSam) -> dict[str, list[float]]:
        return {
            kind: true_box_dice(network, tiles, classes, accelerator)
            for kind, tiles in held_out.items()
        }

    progress = fit(
        run,
        network,
        optimiser,
        draw=draw,
        loss=loss,
        validate=validate if validation else None,
        limits=limits,
    )
    return progress, network


def new_network(config: SamConfig) -> BoxSam:
    """Build a small SAM with random weights."""
    sam = build_small_sam(config.network)
    return BoxSam(SamModel(sam, "", SMALL, SRCSM, config.network))


def started_network(config: SamConfig) -> BoxSam:
    """Build a small SAM with the weights of `config.start`.

    Raises:
        ConfigError: that is no small SAM, or one of other sizes.
    """
    with reading_start():
        model = load_sam(config.start, device="cpu")
    if model.config != config.network:
        raise ConfigError(
            f"start: the sizes of {config.start}, {model.config or model.kind}, are not those of "
            f"the training, {config.network}."
        )
    network = new_network(config)
    network.model.sam.load_state_dict(model.sam.state_dict())
    return network


def restyled(tiles: Tiles, config: SamConfig) -> Tiles:
    """Give every validation tile random looks by region, the same at every validation."""
    generator = torch.Generator().manual_seed(config.seed)
    everywhere = replace(config.regions, share=1.0)
    mode = config.random_convolution
    looks = random_looks(tiles.images, tiles.labels, mode, everywhere, generator)
    return replace(tiles, images=looks)


def with_pixels(case: PreparedCase, rule: PixelRule, modality: str) -> PreparedCase:
    """Replace the intensities of a case by a SAM's pixels, float16."""
    grid = SliceGrid(case.geometry, case.geometry.slice_axis)
    pixels = to_pixels(grid.stack(case.image[0].numpy()), rule, modality)
    volume = np.moveaxis(pixels, 0, 2 - grid.axis)
    return replace(case, image=torch.from_numpy(np.ascontiguousarray(volume)).half()[None])
