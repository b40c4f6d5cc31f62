# SPDX-License-Identifier: Apache-2.0
"""Accuracy of decoding a box on its own tile's part of an embedding, behind BENCHMARKS.md.

    python -m srcsm_training.experiments.tile_decoding \\
        --data ../shared/data/Dataset102_AbdomenMR --sam sam-small-ct

Prints the Dice of masks decoded on the tile alone, and of masks decoded on the whole canvas and cut
out afterwards, for crops around the organs and true boxes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.sam.decoding import Prompts, decode
from SAMRefineLib.sam.models import SamModel, load_sam
from SAMRefineLib.sam.mosaic import Tile, mask_from_tile
from srcsm_training.data.dataset import Case, choose_cases, read_case, read_dataset
from srcsm_training.experiments.reports import DATA, MR
from srcsm_training.sam.decoder import embed
from srcsm_training.sam.layout import Scan, laid_out, organ_boxes
from SRCSMSegmenterLib.components import dice


def lay_out(case: Case, model: SamModel, modality: str, labels: Sequence[int]) -> Scan:
    """Lay out a case's organs in crops, with their true boxes."""
    volume, label_map = read_case(case)
    truth = label_map.array
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    boxes = {v: organ_boxes("true", truth, truth == v, grid, theta1=0.0) for v in labels}
    return laid_out(case.name, volume, truth, boxes, model, "crops", modality)


@torch.inference_mode()
def compare(scan: Scan, model: SamModel) -> dict[str, list[float]]:
    """Return the Dice of every example, decoded on its tile and on the whole canvas."""
    embeddings = embed([scan], model)
    scores: dict[str, list[float]] = {"tile": [], "canvas": []}
    for example in scan.examples:
        tile = scan.tile(example)
        embedding = embeddings[id(scan), example.mosaic, tile.canvas]
        edges = tile.to_tile(np.reshape(example.box.edges, (2, 2)))
        truth = scan.truth(example).numpy()
        for name, answer in (("tile", on_tile), ("canvas", on_canvas)):
            logits = answer(model, embedding, tile, edges)
            mask = mask_from_tile(logits, tile, model.patch) > 0
            scores[name].append(dice(mask.numpy(), truth, empty=1.0))
    return scores


def on_tile(
    model: SamModel, embedding: torch.Tensor, tile: Tile, edges: np.ndarray
) -> torch.Tensor:
    """Return the logits of a box decoded on its tile.

    Args:
        embedding: (channels, rows, columns) of the whole canvas.
        edges: (2, 2), x and y of the box's corners in the tile, pixels.
    """
    rows, columns = tile.patches(model.patch)
    prompts = Prompts(torch.from_numpy(edges.reshape(1, 4)).float())
    corner = torch.tensor([[tile.x, tile.y]])
    return decode(model, embedding[None, :, rows, columns], prompts, corner)[0][0]


def on_canvas(
    model: SamModel, embedding: torch.Tensor, tile: Tile, edges: np.ndarray
) -> torch.Tensor:
    """Decode the box of `on_tile` on the whole canvas, and cut the tile out of the logits."""
    corners = edges + np.array((tile.x, tile.y))
    logits = decode(
        model, embedding[None], Prompts(torch.from_numpy(corners.reshape(1, 4)).float())
    )
    rows, columns = (slice(4 * part.start, 4 * part.stop) for part in tile.patches(model.patch))
    return logits[0][0, rows, columns]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA / MR)
    parser.add_argument("--sam", default="sam-small-ct", metavar="NAME_OR_FOLDER")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN")
    arguments = parser.parse_args(argv)
    model = load_sam(arguments.sam, device="cpu")
    dataset = choose_cases(read_dataset(arguments.data), arguments.cases)
    every: dict[str, list[float]] = {"tile": [], "canvas": []}
    for case in dataset.cases:
        scan = lay_out(case, model, dataset.modality, list(dataset.labels.values()))
        for name, values in compare(scan, model).items():
            every[name] += values
    for name, values in every.items():
        print(f"decoded on the {name}: Dice {np.mean(values):.4f}, {len(values)} boxes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
