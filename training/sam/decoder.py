# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a SAM's mask decoder on one domain (Wang et al.).

Encoder and prompt encoder stay as they are. Boxes come from a coarse network's predictions on the
source, filtered as the refinement filters them, and are moved outwards a little. Embeddings are
computed once and reused, or anew at every step from slices with random convolution. The best
weights are chosen on validation cases of the source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from SAMRefineLib.boxes.boxes import Box
from SAMRefineLib.sam.decoding import Prompts, decode
from SAMRefineLib.sam.embeddings import EmbeddingCache, encode
from SAMRefineLib.sam.models import SamModel, save_sam
from SAMRefineLib.sam.mosaic import mask_from_tile
from SRCSMSegmenterLib.endings import own_name
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.models.bundle import ModelBundle

from ..augment.random_convolution import MODES, random_convolution
from ..engine.accelerator import accelerator_for
from ..engine.config import CasesConfig, Recipe
from ..engine.fit import fit
from ..engine.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Settings, choice, key
from ..engine.limits import Limits
from ..engine.losses import mask_loss
from ..engine.progress import Progress, mean_dice
from ..engine.run_folder import Run, RunResult, open_case_run
from ..engine.source_domain import open_source
from .card import LICENCE, sam_card, summary
from .layout import BOX_KINDS, CoarseNetwork, Example, Layout, Scan, coarse_network, scan_of


@dataclass(frozen=True)
class DecoderRecipe(Recipe):
    """The optimisation of a SAM's mask decoder; defaults are the paper's but the length."""

    steps: int = key(4000, COUNT, paper="200 epochs")
    batch: int = key(16, COUNT, paper="16")
    learning_rate: float = key(1e-4, POSITIVE, paper="1e-4")
    l2: float = key(1e-3, NOT_NEGATIVE, paper="1e-3")


@dataclass(frozen=True)
class DecoderConfig(Settings):
    """The configuration of a fine-tuning.

    Attributes:
        boxes: what SAM is given: "filtered" boxes of the coarse network (the method), "unfiltered"
            ones, the "whole" slice, or the "true" boxes; each kind needs a decoder of its own.
        theta1: the coarse network's confidence from which a voxel counts.
        jitter: largest distance by which each edge of a box moves outwards, on a slice of 512.
        mosaic: "crops" around the organs, or whole "slices".
        embed_once: False computes embeddings anew at every step, which random convolution needs.
        random_convolution: "off", "global", "hard" or "smoothed".
        seed: every random draw of step s on process r is a function of (seed, s, r).
        checkpoint_minutes: time between two checkpoints.
        validate_every: steps between two validations; 0 validates at the end only.
    """

    data: CasesConfig = field(default_factory=CasesConfig)
    boxes: str = key("filtered", choice(*BOX_KINDS), paper="filtered")
    theta1: float = key(0.75, SHARE, paper="0.75")
    jitter: float = key(9.0, NOT_NEGATIVE, unit="pixels", paper="9")
    mosaic: str = key("crops", choice("crops", "slices"), paper="slices")
    embed_once: bool = True
    random_convolution: str = key("off", choice(*MODES), paper="off")
    optimisation: DecoderRecipe = field(default_factory=DecoderRecipe)
    seed: int = key(0, NOT_NEGATIVE)
    checkpoint_minutes: float = key(5.0, NOT_NEGATIVE, unit="minutes")
    validate_every: int = key(200, NOT_NEGATIVE, unit="steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embed_once and self.random_convolution != "off":
            raise ConfigError(
                "Random convolution changes the slices at every step: set embed_once=false too."
            )


Batch = list[tuple[Scan, Example, Box]]
"""Examples and the boxes to give."""


class BoxDecoder(nn.Module):
    """A SAM's mask decoder; the rest of the SAM is no part of this module."""

    def __init__(self, model: SamModel) -> None:
        super().__init__()
        self.model = model
        self.decoder = model.sam.mask_decoder

    def forward(
        self, embeddings: torch.Tensor, prompts: Prompts, corners: torch.Tensor
    ) -> torch.Tensor:
        """Compute logits; see `decoding.decode`."""
        return decode(self.model, embeddings, prompts, corners)[0]


def run_decoder_training(
    dataset_folder: Path,
    config: DecoderConfig,
    sam: SamModel,
    coarse: ModelBundle | CoarseNetwork,
    run_folder: Path,
    *,
    name: str | None = None,
    device: str = "auto",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> RunResult:
    """Lay out the source's cases, fine-tune the decoder (or resume), and save the whole SAM.

    Args:
        sam: moved to the device; its decoder is changed.
        coarse: network whose boxes are given.
        run_folder, name, device: see `segmentation.run.run_training`; the finished SAM is the
            run's folder ``model``.

    Raises:
        DatasetError, ConfigError, DeviceError, VolumeError, TrainingError, CheckpointError.
    """
    # Decoders scale up to slices that are too large for bf16 on a CPU.
    computing = accelerator_for(device, config.optimisation.precision, plane=math.inf)
    place = computing.accelerator.device
    sam.sam.to(place)
    tell = computing.introduce(limits.say)
    source = open_source(dataset_folder, config.data, tell, check=computing.main)
    source.require_scans("Fine-tuning of a SAM")
    if isinstance(coarse, ModelBundle):
        coarse = coarse_network(coarse, str(place))
    known, wanted = len(coarse.labels), len(source.dataset.labels)
    if known != wanted:
        raise ConfigError(f"The coarse network has {known} labels, the dataset {wanted}.")
    run = open_case_run(run_folder, config, computing, source, tell=tell)
    run.tell(f"Boxes from {coarse.name} on {len(source.dataset.cases)} cases ...")
    layout = Layout(config.boxes, config.theta1, config.mosaic, source.modality)
    training, validation = (
        [scan_of(case, coarse, sam, layout) for case in cases]
        for cases in (source.training, source.validation)
    )
    progress = train(run, sam, training, validation, limits)

    def save(folder: Path) -> None:
        about = {
            **summary(run, source, progress),
            "coarse": coarse.name,
            "coarse_identity": coarse.identity,
            "before": {"sam": sam.name, "sam_identity": sam.identity, **sam.training},
        }
        tuned = replace(sam, name=name or own_name(run.folder), training=about)
        save_sam(folder, tuned, sam_card(tuned), LICENCE)

    return run.end(progress, run.folder / "model", save)


def train(
    run: Run,
    model: SamModel,
    training: Sequence[Scan],
    validation: Sequence[Scan],
    limits: Limits,
) -> Progress:
    """Fine-tune the decoder of `model`, which is changed, until its last step or a limit.

    Args:
        run: of a `DecoderConfig`.
        training, validation: scans with examples; validation may be empty.

    Raises:
        DatasetError: no example to train on.
        TrainingError, CheckpointError: see `fit`.
    """
    config, accelerator = run.config, run.accelerator
    recipe, classes = config.optimisation, len(run.labels) + 1
    model.sam.requires_grad_(False).mask_decoder.requires_grad_(True)
    network = BoxDecoder(model)
    optimiser = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2
    )
    known = embed([*training, *validation] if config.embed_once else validation, model)
    examples = [(scan, example) for scan in training for example in scan.examples]
    if not examples:
        raise DatasetError("The coarse network finds nothing of the labels in the training cases.")

    def draw(generator: torch.Generator) -> Batch:
        if config.embed_once:
            order = torch.randint(len(examples), (recipe.batch,), generator=generator)
            chosen = [examples[n] for n in order.tolist()]
        else:
            chosen = same_canvas(examples, recipe.batch, generator)
        return [
            (scan, example, moved(scan, example, config.jitter, generator))
            for scan, example in chosen
        ]

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        seen = known
        if not config.embed_once:
            with torch.no_grad(), accelerator.autocast():
                seen = embed_with_looks(batch, model, config.random_convolution, generator)
        losses = [
            mask_loss(logits[None], scan.truth(example)[None].to(logits.device))
            for (scan, example, _), logits in decoded(network, model, batch, seen, accelerator)
        ]
        return torch.stack(losses).mean()

    def validate(network: BoxDecoder) -> dict[str, list[float]]:
        return {"dice": boxed_dice(network, model, validation, known, classes, accelerator)}

    return fit(
        run,
        network,
        optimiser,
        draw=draw,
        loss=loss,
        validate=validate if validation else None,
        limits=limits,
    )


def moved(scan: Scan, example: Example, jitter: float, generator: torch.Generator) -> Box:
    """Move the edges of the example's box outwards, within what its tile shows.

    Args:
        jitter: largest distance, in pixels of a slice of 512.
    """
    x0, y0, x1, y1 = scan.tile(example).source
    most = jitter * max(scan.labels[example.mosaic][example.member].shape) / 512
    left, up, right, down = (most * torch.rand(4, generator=generator)).tolist()
    box = example.box
    return Box(
        max(x0, box.x0 - left),
        max(y0, box.y0 - up),
        min(x1, box.x1 + right),
        min(y1, box.y1 + down),
    )


Embeddings = dict[tuple[int, int, int], torch.Tensor]
"""By the `id` of a scan, the number of a mosaic and of a canvas."""


def embed(scans: Sequence[Scan], model: SamModel) -> Embeddings:
    """Compute the embeddings of all canvases, float16 on the CPU."""
    cache, embeddings = EmbeddingCache(limit_bytes=0), {}
    for scan in scans:
        for number, mosaic in enumerate(scan.mosaics):
            for canvas in range(len(mosaic.members)):
                drawn = mosaic.canvas(canvas)[None]
                (embeddings[id(scan), number, canvas],) = cache.embed(model, drawn)
    return embeddings


def embed_with_looks(
    batch: Batch, model: SamModel, mode: str, generator: torch.Generator
) -> Embeddings:
    """Compute the embeddings that a batch needs, from slices with random convolution."""
    needed = {
        (id(scan), example.mosaic, scan.tile(example).canvas): scan.mosaics[example.mosaic]
        for scan, example, _ in batch
    }
    labels = {id(scan): scan.labels for scan, _, _ in batch}
    embeddings: Embeddings = {}
    for (scan, number, canvas), mosaic in needed.items():
        slices = list(mosaic.slices)
        for member in mosaic.members[canvas]:
            image = torch.from_numpy(slices[member])[None, None]
            label = torch.from_numpy(labels[scan][number][member].astype(np.int64))[None]
            look = random_convolution(image, label, mode, generator)
            slices[member] = look[0, 0].numpy()
        drawn = torch.from_numpy(replace(mosaic, slices=slices).canvas(canvas)[None])
        embeddings[scan, number, canvas] = encode(model, drawn.to(model.device))[0]
    return embeddings


def same_canvas(
    examples: Sequence[tuple[Scan, Example]], count: int, generator: torch.Generator
) -> list[tuple[Scan, Example]]:
    """Draw at least one example and at most `count`, all of one canvas."""
    scan, example = examples[int(torch.randint(len(examples), (), generator=generator))]
    canvas = scan.tile(example).canvas
    alike = [
        (scan, other)
        for other in scan.examples
        if other.mosaic == example.mosaic and scan.tile(other).canvas == canvas
    ]
    order = torch.randperm(len(alike), generator=generator)[:count]
    return [alike[n] for n in order.tolist()]


def decoded(
    network: nn.Module,
    model: SamModel,
    batch: Batch,
    embeddings: Embeddings,
    accelerator: Accelerator,
) -> list[tuple[tuple[Scan, Example, Box], torch.Tensor]]:
    """Decode every item of a batch.

    Returns:
        Each item with its logits (rows, columns) on the rectangle that its tile shows.
    """
    alike: dict[torch.Size, list] = {}
    for item in batch:
        scan, example, box = item
        tile = scan.tile(example)
        rows, columns = tile.patches(model.patch)
        part = embeddings[id(scan), example.mosaic, tile.canvas][:, rows, columns]
        edges = tile.to_tile(np.reshape(box.edges, (2, 2))).ravel()
        alike.setdefault(part.shape, []).append((item, tile, part, edges))
    answers = []
    for jobs in alike.values():
        items, tiles, parts, edges = zip(*jobs, strict=True)
        with accelerator.autocast():
            logits = network(
                torch.stack(parts).to(model.device),
                Prompts(torch.tensor(np.array(edges), dtype=torch.float32, device=model.device)),
                torch.tensor([(tile.x, tile.y) for tile in tiles], device=model.device),
            )
        answers += [
            (item, mask_from_tile(logit.float(), tile, model.patch))
            for item, tile, logit in zip(items, tiles, logits, strict=True)
        ]
    return answers


@torch.no_grad()
def boxed_dice(
    network: nn.Module,
    model: SamModel,
    scans: Sequence[Scan],
    embeddings: Embeddings,
    classes: int,
    accelerator: Accelerator,
) -> list[float]:
    """Compute `mean_dice` of the foreground, in the slices that have a box."""
    sums = torch.zeros(len(scans), 2, classes, device=accelerator.device)
    for index in range(accelerator.process_index, len(scans), accelerator.num_processes):
        scan = scans[index]
        for first in range(0, len(scan.examples), 16):
            batch = [(scan, e, e.box) for e in scan.examples[first : first + 16]]
            for (_, example, _), logits in decoded(network, model, batch, embeddings, accelerator):
                mask, truth = (logits > 0).cpu(), scan.truth(example)
                sums[index, 0, example.value] += (mask & truth).sum()
                sums[index, 1, example.value] += mask.sum() + truth.sum()
    return mean_dice(sums, accelerator)[1:]
