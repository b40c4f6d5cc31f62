# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a SAM's mask decoder on one domain (Wang et al.).

Encoder and prompt encoder stay as they are. Boxes come from a coarse network's predictions on the
source, are filtered as they will be, and moved outwards a little. Slices are laid out on canvases
as `SAMRefineLib.sam.prediction` does. Embeddings are computed once and reused, or anew at every
step from slices with random looks. The best weights are chosen on validation cases of the source.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.coarse import boxes_from_coarse
from SAMRefineLib.sam.crops import crops
from SAMRefineLib.sam.decoding import Prompts, decode
from SAMRefineLib.sam.embeddings import EmbeddingCache, encode
from SAMRefineLib.sam.models import SamModel, load_sam, save_sam
from SAMRefineLib.sam.mosaic import Mosaic, Tile, mask_from_tile
from SAMRefineLib.sam.pixels import to_pixels
from SAMRefineLib.sam.prediction import lay_out
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

from ..augment.random_convolution import MODES, random_convolution
from ..data.dataset import Case
from ..engine import fit
from ..engine.accelerator import accelerator_for
from ..engine.config import CasesConfig, Recipe, one_of
from ..engine.losses import mask_loss
from ..engine.run_folder import RunResult, open_run
from .from_scratch import LICENCE, sam_card, summary

BOX_KINDS = ("filtered", "unfiltered", "whole", "true")
"""Where a box comes from: the coarse mask, filtered (the method) or not; the edges of the slices
that have a filtered box; the truth (the upper bound)."""


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the result, beside the dataset, the SAM and the coarse network.

    Attributes:
        boxes: one of `BOX_KINDS`; each kind wants a decoder of its own.
        theta1: the coarse network's confidence from which a voxel counts.
        jitter: pixels of a slice of 512; each edge of a box moves outwards by up to that.
        mosaic: "crops" around the organs, or whole "slices".
        embed_once: False computes embeddings anew at every step, which random convolution needs.
        random_convolution: "off", "global", "hard" or "smoothed".
        seed, checkpoint_minutes, validate_every: as in `TrainingConfig`.
    """

    data: CasesConfig = field(default_factory=CasesConfig)
    boxes: str = "filtered"
    theta1: float = 0.75
    jitter: float = 9.0
    mosaic: str = "crops"
    embed_once: bool = True
    random_convolution: str = "off"
    optimisation: Recipe = field(
        default_factory=lambda: Recipe(steps=4000, batch=16, learning_rate=1e-4, l2=1e-3)
    )
    seed: int = 0
    checkpoint_minutes: float = 5.0
    validate_every: int = 200

    def __post_init__(self) -> None:
        one_of("boxes", self.boxes, BOX_KINDS)
        one_of("mosaic", self.mosaic, ("crops", "slices"))
        one_of("random_convolution", self.random_convolution, MODES)
        if self.embed_once and self.random_convolution != "off":
            raise ConfigError(
                "Random convolution changes the slices at every step: set embed_once=false too."
            )


@dataclass(frozen=True)
class Example:
    """An object in a slice and its box.

    Attributes:
        mosaic, member: the slice among those of a `Scan`.
        value: the object's label.
        box: edges on the slice.
    """

    mosaic: int
    member: int
    value: int
    box: Box


@dataclass(frozen=True, eq=False)
class Scan:
    """A case laid out for SAM.

    Attributes:
        mosaics: of whole slices, or one of crops for each organ.
        labels: (rows, columns) of each mosaic's slices.
        examples: what is to be found in them.
    """

    name: str
    mosaics: tuple[Mosaic, ...]
    labels: tuple[tuple[np.ndarray, ...], ...]
    examples: tuple[Example, ...]

    def tile(self, example: Example) -> Tile:
        """Where the example's slice lies."""
        return self.mosaics[example.mosaic].tiles[example.member]

    def truth(self, example: Example) -> torch.Tensor:
        """(rows, columns) bool on the rectangle that the example's tile shows."""
        x0, y0, x1, y1 = self.tile(example).source
        labels = self.labels[example.mosaic][example.member][y0:y1, x0:x1]
        return torch.from_numpy(labels == example.value)


Batch = list[tuple[Scan, Example, Box]]
"""Examples and the boxes to give."""


class BoxDecoder(nn.Module):
    """A SAM's mask decoder; the rest of the SAM is at hand, but no part of this module."""

    def __init__(self, model: SamModel) -> None:
        super().__init__()
        self.model = model
        self.decoder = model.sam.mask_decoder

    def __deepcopy__(self, memo: dict) -> "BoxDecoder":
        # Of a large SAM everything but the decoder is shared.
        sam = copy.copy(self.model.sam)
        sam._modules = {**sam._modules, "mask_decoder": copy.deepcopy(self.decoder, memo)}
        return BoxDecoder(replace(self.model, sam=sam))

    def forward(
        self, embeddings: torch.Tensor, prompts: Prompts, corners: torch.Tensor
    ) -> torch.Tensor:
        """Logits; see `decoding.decode`."""
        return decode(self.model, embeddings, prompts, corners)[0]


def run_decoder_training(
    dataset_folder: Path,
    config: DecoderConfig,
    sam: Path,
    coarse: ModelBundle,
    run_folder: Path,
    *,
    kind: str | None = None,
    name: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
    progress: Callable[[fit.Progress], None] = lambda progress: None,
    **limits: Any,  # noqa: ANN401 - max_minutes, stop_requested of `fit.fit`
) -> RunResult:
    """Lay out the source's cases, fine-tune the decoder (or resume), and save the whole SAM.

    Args:
        sam: what `load_sam` loads, of that `kind`.
        coarse: network whose boxes are given.
        run_folder, name, device, say, progress: see `run.run_training`; the finished SAM is the
            run's folder ``model``.

    Raises:
        DatasetError, ConfigError, DeviceError, VolumeError, BundleError, TrainingError,
        CheckpointError.
    """
    # Decoders scale up to slices that are too large for bf16 on a CPU.
    computing = accelerator_for(device, config.optimisation.precision, plane=math.inf)
    accelerator = computing.accelerator
    where = str(accelerator.device)
    model = load_sam(sam, kind, where)
    run = open_run(dataset_folder, config.data, run_folder, computing, say)
    source, labels = run.source, run.labels
    fit.state_to_resume(run.folder, config, source.training, source.validation)
    if (known := len(coarse.description.labels)) != len(labels):
        raise ConfigError(f"The coarse network has {known} labels, the dataset {len(labels)}.")
    run.tell(f"Boxes from {coarse.description.name} on {len(source.dataset.cases)} cases ...")
    training, validation = (
        [scan_of(case, coarse, model, config, source.modality, where) for case in cases]
        for cases in (source.training, source.validation)
    )

    run.begin(config)
    state, weights = train(
        config,
        model,
        training,
        validation,
        len(labels) + 1,
        run.folder,
        accelerator=accelerator,
        report=progress,
        validated=lambda _, state: run.write_curve(state),
        **limits,
    )

    def save(folder: Path) -> None:
        BoxDecoder(model).load_state_dict(weights)
        before = {"sam": model.name, "sam_identity": model.identity, **model.training}
        about = {
            **summary(config, run, state),
            "coarse": coarse.description.name,
            "coarse_identity": coarse.identity,
            "before": before,
        }
        tuned = replace(model, name=name or run.folder.resolve().name, training=about)
        save_sam(folder, tuned, sam_card(tuned), LICENCE)

    return run.end(state, run.folder / "model", save)


def train(
    config: DecoderConfig,
    model: SamModel,
    training: Sequence[Scan],
    validation: Sequence[Scan],
    classes: int,
    run_folder: Path,
    *,
    accelerator: Accelerator,
    **arguments: Any,  # noqa: ANN401 - of `fit.fit`
) -> tuple[fit.Progress, dict[str, torch.Tensor]]:
    """Fine-tune the decoder of `model`, which is changed; for the rest see `fit.fit`."""
    recipe = config.optimisation
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
            (scan, example, moved(scan, example, config, generator)) for scan, example in chosen
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

    return fit.fit(
        config,
        network,
        optimiser,
        run_folder,
        training,
        validation,
        draw=draw,
        loss=loss,
        validate=lambda average: boxed_dice(
            average, model, validation, known, classes, accelerator
        ),
        accelerator=accelerator,
        **arguments,
    )


def scan_of(
    case: Case,
    coarse: ModelBundle,
    model: SamModel,
    config: DecoderConfig,
    modality: str,
    device: str,
) -> Scan:
    """Predict a case with the coarse network, box its organs, and lay it out."""
    volume, truth = read_volume(case.image), read_labels(case.labels)
    found = segment(
        volume,
        coarse,
        modality=modality,
        source_matching=False,
        device=device,
        keep_largest=False,
        keep_probabilities=True,
    )
    grid = SliceGrid(volume.geometry, volume.geometry.coarsest_axis)
    boxes = {
        value: organ_boxes(
            config.boxes, found.probabilities[value], truth.array == value, grid, config.theta1
        )
        for value in range(1, len(found.probabilities))
    }
    return laid_out(case.name, volume, truth.array, boxes, model, config.mosaic, modality)


def organ_boxes(
    kind: str, probability: np.ndarray, truth: np.ndarray, grid: SliceGrid, theta1: float
) -> dict[int, Box]:
    """Boxes of one organ by slice number, of one of `BOX_KINDS`.

    Args:
        probability: (K, J, I), the coarse network's.
        truth: (K, J, I) bool.
    """
    if kind == "true":
        return boxes_from_coarse(truth, grid, in_volume=False, in_slices=False)
    filtered = kind != "unfiltered"
    boxes = boxes_from_coarse(probability, grid, theta1, in_volume=filtered, in_slices=filtered)
    rows, columns = grid.shape
    return dict.fromkeys(boxes, Box(0, 0, columns, rows)) if kind == "whole" else boxes


def laid_out(
    name: str,
    volume: Volume,
    truth: np.ndarray,
    boxes: Mapping[int, Mapping[int, Box]],
    model: SamModel,
    mosaic: str,
    modality: str,
) -> Scan:
    """Lay the slices with boxes out as the refinement does.

    Args:
        truth: labels (K, J, I).
        boxes: by label and slice number; those where the slice does not show the label are no
            examples.
    """
    grid = SliceGrid(volume.geometry, volume.geometry.coarsest_axis)
    pixels = to_pixels(grid.stack(volume.array), model.pixels, modality)
    labels = grid.stack(truth)
    boxes = {
        value: {n: box for n, box in of_organ.items() if (labels[n] == value).any()}
        for value, of_organ in boxes.items()
    }
    if mosaic == "crops":
        sources = [(crops(boxes[value], boxes[value], grid), [value]) for value in boxes]
    else:
        rows, columns = grid.shape
        shown = sorted({n for of_organ in boxes.values() for n in of_organ})
        sources = [(dict.fromkeys(shown, (0, 0, columns, rows)), list(boxes))]
    mosaics, truths, examples = [], [], []
    for number, (rectangles, values) in enumerate(sources):
        mosaics.append(lay_out(pixels, rectangles, grid, model, mosaic))
        truths.append(tuple(labels[n] for n in rectangles))
        members = {n: member for member, n in enumerate(rectangles)}
        for value in values:
            examples += [Example(number, members[n], value, box) for n, box in boxes[value].items()]
    return Scan(name, tuple(mosaics), tuple(truths), tuple(examples))


def moved(scan: Scan, example: Example, config: DecoderConfig, generator: torch.Generator) -> Box:
    """The example's box with its edges moved outwards, within what its tile shows."""
    x0, y0, x1, y1 = scan.tile(example).source
    most = config.jitter * max(scan.labels[example.mosaic][example.member].shape) / 512
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
    """The embeddings of all canvases, float16 on the CPU."""
    cache, found = EmbeddingCache(limit_bytes=0), {}
    for scan in scans:
        for number, mosaic in enumerate(scan.mosaics):
            for canvas in range(len(mosaic.members)):
                drawn = mosaic.canvas(canvas)[None]
                (found[id(scan), number, canvas],) = cache.embed(model, drawn)
    return found


def embed_with_looks(
    batch: Batch, model: SamModel, mode: str, generator: torch.Generator
) -> Embeddings:
    """The embeddings that a batch needs, each slice after random convolution."""
    needed = {
        (id(scan), example.mosaic, scan.tile(example).canvas): scan.mosaics[example.mosaic]
        for scan, example, _ in batch
    }
    labels = {id(scan): scan.labels for scan, _, _ in batch}
    found = {}
    for (scan, number, canvas), mosaic in needed.items():
        slices = list(mosaic.slices)
        for member in mosaic.members[canvas]:
            image = torch.from_numpy(slices[member])[None, None]
            label = torch.from_numpy(labels[scan][number][member].astype(np.int64))[None]
            look = random_convolution(image, label, mode, generator)
            slices[member] = look[0, 0].numpy()
        drawn = torch.from_numpy(replace(mosaic, slices=slices).canvas(canvas)[None])
        found[scan, number, canvas] = encode(model, drawn.to(model.device))[0]
    return found


def same_canvas(
    examples: Sequence[tuple[Scan, Example]], count: int, generator: torch.Generator
) -> list[tuple[Scan, Example]]:
    """At least one example and at most `count`, all of one random canvas."""
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
    """Each item of a batch with its logits on the rectangle that its tile shows."""
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
    """`fit.mean_dice` of the foreground, in the slices that have a box."""
    sums = torch.zeros(len(scans), 2, classes, device=accelerator.device)
    for index in range(accelerator.process_index, len(scans), accelerator.num_processes):
        scan = scans[index]
        for first in range(0, len(scan.examples), 16):
            batch = [(scan, e, e.box) for e in scan.examples[first : first + 16]]
            for (_, example, _), logits in decoded(network, model, batch, embeddings, accelerator):
                found, truth = (logits > 0).cpu(), scan.truth(example)
                sums[index, 0, example.value] += (found & truth).sum()
                sums[index, 1, example.value] += found.sum() + truth.sum()
    return fit.mean_dice(sums, accelerator)[1:]
