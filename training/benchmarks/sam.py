# SPDX-License-Identifier: Apache-2.0
"""SAM: encoder passes for an organ, time from an edit to its masks, and size of the cache.

The decoder of an official SAM is measured with random weights, and with noise in place of its
encoder, which would take minutes.
"""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.acceptance import ACCEPT_ALL
from SAMRefineLib.refine.refiner import OrganPrompt, Refiner
from SAMRefineLib.refine.results import Refinement
from SAMRefineLib.sam.catalogue import is_sam
from SAMRefineLib.sam.checkpoints import CHECKPOINTS
from SAMRefineLib.sam.decoding import Prompts, decode
from SAMRefineLib.sam.embeddings import EmbeddingCache
from SAMRefineLib.sam.models import SMALL, SamModel, build_sam, load_sam
from SAMRefineLib.sam.pixels import SRCSM
from SAMRefineLib.sam.prediction import BOXES_AT_ONCE, MosaicMode
from SAMRefineLib.sam.small_sam import SmallSamConfig
from srcsm_training.benchmarks.timing import (
    Row,
    Table,
    a_scan,
    compared,
    comparison,
    elapsed,
    median_elapsed,
    synchronise,
)
from srcsm_training.data.dataset import read_case, read_dataset
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder

SLICES = 25
"""Number of slices of the organ that is edited."""

MIB = 2**20

LAYOUTS: dict[MosaicMode, str] = {
    "off": "slice by slice",
    "slices": "mosaic of slices",
    "crops": "mosaic of crops",
}


def tables(folder: Path, data: Path, device: torch.device) -> tuple[Table, ...]:
    """Measure all tables of this module at full size."""
    official, small = an_official_sam(device), a_small_sam(device)
    scan = a_scan(data, folder / "phantom-mr")
    return (
        passes_table(scan, small, official),
        edit_table(official, small),
        decoder_table(official),
        cache_table(official),
    )


def passes_table(scan: Path, small: SamModel, official: SamModel) -> Table:
    """Measure canvases and seconds for the first organ of a dataset's scan, in its true boxes."""
    dataset = read_dataset(scan.parents[1])
    (case,) = (case for case in dataset.cases if case.image == scan)
    name, value = next(iter(dataset.labels.items()))
    volume, label_map = read_case(case)
    mask = label_map.array == value
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    organ = OrganPrompt(KeyFrames.from_coarse(name, value, mask, grid), mask)
    slices = len(organ.frames.effective())

    def refined(model: SamModel, mosaic: MosaicMode) -> Refinement:
        refiner = Refiner(volume, grid, model, modality=dataset.modality, mosaic=mosaic)
        return refiner.refine([organ], acceptance=ACCEPT_ALL)

    rows = []
    for mosaic, title in LAYOUTS.items():
        refinement = refined(small, mosaic)
        seconds = elapsed(lambda mosaic=mosaic: refined(small, mosaic))  # warm by now
        passes = refinement.encoder_passes, refined(official, mosaic).encoder_passes
        rows.append(Row(title, (passes[0], seconds, seconds / slices, passes[1])))
    columns = (f"passes, {small.name}", "s", "s a slice", f"passes, {official.name}")
    place = f"{scan.parents[1].name}/{scan.name}, {small.device}"
    return Table(f"SAM, from nothing to the {name}'s {slices} slices, {place}", columns, rows)


def edit_table(official: SamModel, small: SamModel, sides: tuple[int, int] = (512, 256)) -> Table:
    """Measure from a moved box to the mask, embeddings known, in slices of `sides` squared."""
    large, medium = sides
    wanted: tuple[tuple[str, int, MosaicMode, int, float | None], ...] = (
        (f"one slice of {large} px", large, "slices", 1, 0.2),
        (f"{SLICES} slices of {large} px", large, "slices", SLICES, 2.0),
        (f"{SLICES} slices of {medium} px", medium, "slices", SLICES, 1.0),
        (f"one slice of {large} px, crops", large, "crops", 1, None),
        (f"{SLICES} slices of {large} px, crops", large, "crops", SLICES, None),
    )
    rows = []
    for title, side, mosaic, moved, aim in wanted:
        seconds = [edit_seconds(model, side, mosaic, moved) for model in (official, small)]
        rows.append(Row(title, (*seconds, aim)))
    columns = tuple(f"{name}, s" for name in (official.name, small.name, "aim"))
    title = f"SAM, from a moved box to the mask, embeddings known, {official.device}"
    return Table(title, columns, tuple(rows))


def edit_seconds(model: SamModel, side: int, mosaic: MosaicMode, moved: int) -> float:
    """Return the median of some edits that move the boxes of an organ's first `moved` slices."""
    volume, boxes = noise(side)
    grid = SliceGrid(volume.geometry, 2)
    frames = KeyFrames("organ", 1, grid, boxes)
    coarse = np.zeros(volume.array.shape, bool)
    for n, box in boxes.items():
        x0, y0, x1, y1 = map(int, box.edges)
        coarse[n, y0:y1, x0:x1] = True
    refiner = Refiner(volume, grid, model, modality="MR", mosaic=mosaic)
    refiner.refine([OrganPrompt(frames, coarse)], acceptance=ACCEPT_ALL)
    seconds = []
    for edit in range(1, 5):
        by = edit * side / 512
        others = {n: Box(*np.add(box.edges, by)) for n, box in list(boxes.items())[:moved]}
        organ = OrganPrompt(replace(frames, edited=boxes | others), coarse)
        seconds.append(
            elapsed(
                lambda organ=organ: refiner.refine([organ], acceptance=ACCEPT_ALL), model.device
            )
        )
    return statistics.median(seconds[1:])


def decoder_table(official: SamModel, sides: tuple[int, int] = (512, 256)) -> Table:
    """Compare the decoder on the whole canvas's embedding with that on a tile's part of it."""
    whole = official.canvas // official.patch
    embedding = torch.randn(official.sam.prompt_encoder.embed_dim, whole, whole)
    rows = []
    for side in sides:
        tokens = side // official.patch
        for count in (1, SLICES):
            boxes = torch.tensor([[0.3, 0.3, 0.6, 0.7]]) * side

            def seconds(tokens: int, count: int = count, boxes: torch.Tensor = boxes) -> float:
                part = embedding[:, :tokens, :tokens]
                return median_elapsed(lambda: decoded(official, part, boxes, count))

            what = f"{count} {'box' if count == 1 else 'boxes'}, tile of {side} px"
            rows.append(comparison(what, seconds(whole), seconds(tokens)))
    title = f"SAM's decoder, {official.name}, {official.device}"
    return Table(title, compared("on the whole canvas", "on the tile alone"), tuple(rows))


@torch.inference_mode()
def decoded(model: SamModel, part: torch.Tensor, boxes: torch.Tensor, count: int) -> None:
    """Decode the same box `count` times, in batches as a refinement does.

    Args:
        part: (channels, rows, columns) of an embedding.
        boxes: (1, 4) x0, y0, x1, y1 in pixels.
    """
    for first in range(0, count, BOXES_AT_ONCE):
        batch = min(BOXES_AT_ONCE, count - first)
        corners = torch.zeros(batch, 2)
        parts, prompts = part.expand(batch, -1, -1, -1), Prompts(boxes.expand(batch, -1))
        decode(model, parts, prompts, corners)
    synchronise(model.device)


def cache_table(official: SamModel, side: int = 512) -> Table:
    """Measure the cache's size over an organ, and the cost of a cache that is too small."""
    volume, boxes = noise(side)
    grid = SliceGrid(volume.geometry, 2)
    organ = OrganPrompt(KeyFrames("organ", 1, grid, boxes))
    rows = []
    for limit in (2048 * MIB, 6 * MIB):
        cache = EmbeddingCache(limit_bytes=limit)
        held, passes = [], []
        for _ in range(2):
            # Another refiner knows no answers, so it needs every embedding.
            refiner = Refiner(volume, grid, official, modality="MR", mosaic="slices", cache=cache)
            refinement = refiner.refine(
                [organ],
                acceptance=ACCEPT_ALL,
                progress=lambda *_, cache=cache, held=held: held.append(cache.bytes),
            )
            passes.append(refinement.encoder_passes)
        rows.append(Row(f"limit of {limit // MIB} MiB", (max(held) / MIB, *passes)))
    title = f"Embedding cache, {SLICES} slices of {side} px in a mosaic, {official.name}"
    columns = ("held at most, MiB", "encoder passes", "passes of the same once more")
    return Table(title, columns, tuple(rows))


def noise(side: int) -> tuple[Volume, Mapping[int, Box]]:
    """Make a volume of 40 slices, and boxes at different places in `SLICES` of them."""
    millimetres = 400 / side
    geometry = Geometry((side, side, 40), np.diag([millimetres, millimetres, 5.0, 1.0]))
    array = np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32)
    unit = side / 512
    edges = {n: (150 + n % 3, 180, 290 - n % 4, 330) for n in range(8, 8 + SLICES)}
    return Volume(array, geometry), {n: Box(*np.multiply(e, unit)) for n, e in edges.items()}


class Noise(nn.Module):
    """A stand-in for an encoder: embeddings of the same size, in no time."""

    def __init__(self, canvas: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.img_size, self.shape = canvas, shape
        self.patch_embed = SimpleNamespace(proj=SimpleNamespace(in_channels=3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return embeddings (n, C, h, w) for n canvases."""
        return torch.randn(len(images), *self.shape, device=images.device)


def an_official_sam(device: torch.device) -> SamModel:
    """Build ViT-B with random weights and no encoder."""
    sam = build_sam("vit_b").requires_grad_(False)
    size = sam.prompt_encoder.image_embedding_size
    sam.image_encoder = Noise(sam.image_encoder.img_size, (sam.prompt_encoder.embed_dim, *size))
    return SamModel(sam.to(device), "ViT-B", "vit_b", CHECKPOINTS["vit_b"].pixels)


def a_small_sam(device: torch.device) -> SamModel:
    """Load the shipped small SAM, or build one of its size with random weights."""
    if is_sam(shipped_models_folder() / "sam-small-ct"):
        return load_sam("sam-small-ct", device=str(device))
    config = SmallSamConfig()
    sam = build_sam(SMALL, config).requires_grad_(False).to(device)
    return SamModel(sam, "small SAM, random weights", SMALL, SRCSM, config)
