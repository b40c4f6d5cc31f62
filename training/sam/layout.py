# SPDX-License-Identifier: Apache-2.0
"""Cases laid out for SAM as the refinement does: canvases of slices, and boxes of organs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.coarse import boxes_from_coarse
from SAMRefineLib.sam.crops import crops
from SAMRefineLib.sam.models import SamModel
from SAMRefineLib.sam.mosaic import Mosaic, Tile
from SAMRefineLib.sam.pixels import to_pixels
from SAMRefineLib.sam.prediction import lay_out
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle

from ..data.dataset import Case, read_case

BOX_KINDS = ("filtered", "unfiltered", "whole", "true")
"""Where a box comes from: the coarse mask, filtered (the method) or not; the edges of the slices
that have a filtered box; the truth (the upper bound)."""


@dataclass(frozen=True, eq=False)
class CoarseNetwork:
    """A network whose predictions become boxes.

    Attributes:
        labels: name -> label.
        predict: called as predict(volume, modality) -> a function that gives the probability of a
            label, (K, J, I) from 0 to 1.
    """

    name: str
    identity: str
    labels: dict[str, int]
    predict: Callable[[Volume, str], Callable[[int], np.ndarray]]


def coarse_network(bundle: ModelBundle, device: str) -> CoarseNetwork:
    """Take a trained segmentation network as coarse network, without source matching."""

    def predict(volume: Volume, modality: str) -> Callable[[int], np.ndarray]:
        result = segment(
            volume,
            bundle,
            modality=modality,
            source_matching=False,
            device=device,
            keep_largest=False,
        )
        return result.probabilities.whole

    description = bundle.description
    labels = {label.name: label.value for label in description.labels}
    return CoarseNetwork(description.name, bundle.identity, labels, predict)


@dataclass(frozen=True)
class Layout:
    """The boxes of a case and the canvases of its slices.

    Attributes:
        boxes: one of `BOX_KINDS`.
        theta1: the coarse network's confidence from which a voxel counts.
        mosaic: "crops" or "slices".
        modality: "CT" or "MR".
    """

    boxes: str
    theta1: float
    mosaic: str
    modality: str


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
        examples: the objects in them.
    """

    name: str
    mosaics: tuple[Mosaic, ...]
    labels: tuple[tuple[np.ndarray, ...], ...]
    examples: tuple[Example, ...]

    def tile(self, example: Example) -> Tile:
        """Return the tile of the example's slice."""
        return self.mosaics[example.mosaic].tiles[example.member]

    def truth(self, example: Example) -> torch.Tensor:
        """Return the object's mask, (rows, columns) bool, on the rectangle that its tile shows."""
        x0, y0, x1, y1 = self.tile(example).source
        labels = self.labels[example.mosaic][example.member][y0:y1, x0:x1]
        return torch.from_numpy(labels == example.value)


def scan_of(
    case: Case,
    coarse: CoarseNetwork,
    model: SamModel,
    layout: Layout,
) -> Scan:
    """Predict a case with the coarse network, box its organs, and lay it out."""
    volume, truth = read_case(case)
    probability = coarse.predict(volume, layout.modality)
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    boxes = {
        value: organ_boxes(
            layout.boxes,
            probability(value),
            truth.array == value,
            grid,
            layout.theta1,
        )
        for value in coarse.labels.values()
    }
    return laid_out(case.name, volume, truth.array, boxes, model, layout.mosaic, layout.modality)


def organ_boxes(
    kind: str, probability: np.ndarray, truth: np.ndarray, grid: SliceGrid, theta1: float
) -> dict[int, Box]:
    """Find the boxes of one organ by slice index, of one of `BOX_KINDS`.

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
        boxes: by label and slice index; boxes in slices that do not show the label are no
            examples.
    """
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
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
