# SPDX-License-Identifier: Apache-2.0
"""SAM's answers to prompts in the slices of a volume, each computed once.

Slices with boxes are laid out on canvases (`mosaic`), encoded (`embeddings`) and decoded box by
box (`decoding`).
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch

from SRCSMSegmenterLib.errors import Cancelled
from SRCSMSegmenterLib.geometry import Volume

from ..boxes.boxes import Box, SliceGrid
from ..boxes.coarse import CoarseMask
from .decoding import Prompts, decode
from .embeddings import EmbeddingCache
from .models import SamModel
from .mosaic import Mosaic, Rectangle, Tile, mask_from_tile, mask_to_tile, pack
from .pixels import to_pixels

MosaicMode = Literal["slices", "crops", "off"]
"""Whole slices side by side; squares around the organ, scaled to one size; a canvas per slice."""

TILE_PATCHES = 16
"""Sides of a crop's tile, and least of a slice's, in patches: 256 pixels of an official SAM, of
which sixteen fill a canvas; 128, a window, of a small one."""

CANVASES_AT_ONCE = 4
BOXES_AT_ONCE = 16

Progress = Callable[[str, float], None]
Place = tuple[int, int]
"""An organ's label and the number of a slice."""


@dataclass(frozen=True)
class Point:
    """A hint beside the box, in edge coordinates of the slice: x along columns, y along rows.

    Attributes:
        positive: it lies in the organ; else it does not.
    """

    x: float
    y: float
    positive: bool = True


@dataclass(frozen=True)
class Question:
    """What SAM is asked about an organ in a slice.

    Attributes:
        box: around the organ.
        source: what to show of the slice.
        points: hints beside the box.
        guess: coarse mask to begin with, or None.
    """

    box: Box
    source: Rectangle
    points: tuple[Point, ...] = ()
    guess: CoarseMask | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """SAM's mask.

    Attributes:
        probability: float16 on the `source` rectangle of the slice, which is what SAM saw.
        predicted_iou: SAM's own estimate.
        blank: SAM saw one and the same intensity everywhere.
    """

    probability: np.ndarray
    source: Rectangle
    predicted_iou: float
    blank: bool


@dataclass(frozen=True, eq=False)
class _Canvas:
    """A canvas of a mosaic, and the tiles on it that questions are about."""

    mosaic: Mosaic
    number: int
    tiles: dict[Place, Tile]


class Predictor:
    """A volume that SAM can be asked about again and again: only what is new is computed.

    Attributes:
        seconds: spent so far per stage: "encode", "decode".
    """

    def __init__(
        self,
        volume: Volume,
        grid: SliceGrid,
        model: SamModel,
        *,
        modality: str | None = None,
        mosaic: MosaicMode = "crops",
        cache: EmbeddingCache | None = None,
    ) -> None:
        """Prepare the volume's pixels.

        Args:
            volume: raw intensities.
            grid: its slices.
            modality: "CT" or "MR"; None guesses.
            mosaic: what a tile shows.
            cache: of embeddings, may be shared; None makes one.

        Raises:
            VolumeError: NaN or infinite voxels.
        """
        self.seconds = {"encode": 0.0, "decode": 0.0}
        self._grid, self._model, self._mode = grid, model, mosaic
        self._cache = EmbeddingCache() if cache is None else cache
        self._pixels = to_pixels(grid.stack(volume.array), model.pixels, modality)
        # What shares canvases, in order. Slices are only ever added, so that canvases stay full of
        # what they were full of.
        self._layouts: dict[int, dict[int, Rectangle]] = {}
        self._answers: dict[Place, tuple[Question, Answer]] = {}

    def anew(self) -> Self:
        """One that shares pixels and embeddings, and was not asked anything yet: what it is asked
        does not change what this one has laid out."""
        other = copy.copy(self)
        other._layouts, other._answers = {}, {}
        return other

    @property
    def passes(self) -> int:
        """Canvases that went through the encoder so far."""
        return self._cache.passes

    def embed(
        self,
        questions: Mapping[Place, Question],
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        """Compute the embeddings that answers will need.

        Raises:
            DeviceError: out of memory.
            Cancelled: `cancelled`, which is asked between two canvases, said so.
        """
        for _ in self._embedded(questions, progress, cancelled):
            pass

    def ask(
        self,
        questions: Mapping[Place, Question],
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> dict[Place, Answer]:
        """SAM's answers; a question that was asked before gets the same object again.

        Raises:
            DeviceError: out of memory.
            Cancelled: `cancelled`, asked between two canvases or batches of boxes, said so.
        """
        new = {
            place: question
            for place, question in questions.items()
            if place not in self._answers or self._answers[place][0] != question
        }
        for canvases, embeddings in self._embedded(new, progress, cancelled):
            with _timed(self.seconds, "decode"):
                self._decode(canvases, embeddings, new, cancelled)
        return {place: self._answers[place][1] for place in questions}

    def _embedded(
        self,
        questions: Mapping[Place, Question],
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> Iterator[tuple[list[_Canvas], list[torch.Tensor]]]:
        """The canvases that the questions need, a few at a time, with their embeddings."""
        canvases = self._canvases(questions)

        def step(done: int) -> None:
            _stop_if(cancelled)
            progress("encode", done / len(canvases))

        for first in range(0, len(canvases), CANVASES_AT_ONCE):
            step(first)
            group = canvases[first : first + CANVASES_AT_ONCE]
            with _timed(self.seconds, "encode"):
                drawn = np.stack([canvas.mosaic.canvas(canvas.number) for canvas in group])
                embeddings = self._cache.embed(
                    self._model, drawn, lambda done, first=first: step(first + done)
                )
            yield group, embeddings

    def _canvases(self, questions: Mapping[Place, Question]) -> list[_Canvas]:
        """Lay out what the questions need beside what is laid out already."""
        wanted: dict[int, list[int]] = {}
        for value, n in sorted(questions):
            # All organs share whole slices; crops are an organ's own; or every slice is apart.
            layout = {"slices": 0, "crops": value, "off": n}[self._mode]
            self._layouts.setdefault(layout, {})[n] = questions[value, n].source
            wanted.setdefault(layout, []).append((value, n))
        canvases: list[_Canvas] = []
        for layout, places in wanted.items():
            sources = self._layouts[layout]
            mosaic = lay_out(self._pixels, sources, self._grid, self._model, self._mode)
            tiles = dict(zip(sources, mosaic.tiles, strict=True))
            on_canvas: dict[int, dict[Place, Tile]] = {}
            for place in places:
                tile = tiles[place[1]]
                on_canvas.setdefault(tile.canvas, {})[place] = tile
            canvases += [_Canvas(mosaic, number, on_canvas[number]) for number in sorted(on_canvas)]
        return canvases

    @torch.inference_mode()
    def _decode(
        self,
        canvases: Sequence[_Canvas],
        embeddings: Sequence[torch.Tensor],
        questions: Mapping[Place, Question],
        cancelled: Callable[[], bool],
    ) -> None:
        """Answer the questions on these canvases; those on tiles of one size go together."""
        alike: dict[tuple, list[tuple[Place, Tile, torch.Tensor]]] = {}
        for canvas, embedding in zip(canvases, embeddings, strict=True):
            for place, tile in canvas.tiles.items():
                rows, columns = tile.patches(self._model.patch)
                part = embedding[:, rows, columns]
                kind = (part.shape, questions[place].guess is None)
                alike.setdefault(kind, []).append((place, tile, part))
        for jobs in alike.values():
            for first in range(0, len(jobs), BOXES_AT_ONCE):
                _stop_if(cancelled)
                places, tiles, parts = zip(*jobs[first : first + BOXES_AT_ONCE], strict=True)
                logits, ious = decode(
                    self._model,
                    torch.stack(parts),
                    _prompts(places, tiles, questions, self._model.patch),
                    torch.tensor([(tile.x, tile.y) for tile in tiles]),
                )
                for place, tile, logit, iou in zip(
                    places, tiles, logits, ious.tolist(), strict=True
                ):
                    answer = self._answer(place[1], tile, logit, iou)
                    self._answers[place] = questions[place], answer

    def _answer(self, n: int, tile: Tile, logits: torch.Tensor, iou: float) -> Answer:
        probability = mask_from_tile(logits, tile, self._model.patch).sigmoid()
        x0, y0, x1, y1 = tile.source
        blank = bool(np.ptp(self._pixels[n, y0:y1, x0:x1]) == 0)
        return Answer(probability.half().cpu().numpy(), tile.source, iou, blank)


def lay_out(
    pixels: np.ndarray,
    sources: Mapping[int, Rectangle],
    grid: SliceGrid,
    model: SamModel,
    mode: MosaicMode,
) -> Mosaic:
    """Rectangles of slices on canvases.

    Args:
        pixels: (n, rows, columns), all slices of the grid, ready for the model's encoder.
        sources: by slice number.
    """
    tile = min(TILE_PATCHES * model.patch, model.canvas)
    at_least, at_most = {
        "slices": (tile, model.canvas),
        "crops": (tile, tile),
        "off": (model.canvas, model.canvas),
    }[mode]
    row_mm, column_mm = grid.spacing
    return pack(
        [pixels[n] for n in sources],
        side=model.canvas,
        step=model.step,
        at_least=at_least,
        at_most=at_most,
        sources=list(sources.values()),
        aspect=row_mm / column_mm,
        fill=model.pixels.fill,
    )


def _prompts(
    places: Sequence[Place],
    tiles: Sequence[Tile],
    questions: Mapping[Place, Question],
    patch: int,
) -> Prompts:
    """Questions in the coordinates of their tiles; all or none of them have a guess."""
    asked = [questions[place] for place in places]
    boxes = [
        tile.to_tile(np.reshape(question.box.edges, (2, 2))).ravel()
        for question, tile in zip(asked, tiles, strict=True)
    ]
    points, labels, masks = None, None, None
    if most := max(len(question.points) for question in asked):
        points = torch.zeros(len(asked), most, 2)
        labels = torch.full((len(asked), most), -1.0)
        for row, (question, tile) in enumerate(zip(asked, tiles, strict=True)):
            for column, point in enumerate(question.points):
                points[row, column] = torch.from_numpy(tile.to_tile(np.array([point.x, point.y])))
                labels[row, column] = float(point.positive)
    if asked[0].guess is not None:
        guesses = [
            mask_to_tile(question.guess.probability(n), tile, patch)
            for question, (_, n), tile in zip(asked, places, tiles, strict=True)
        ]
        # Limited to what SAM's own logits reach, which is what it was trained to be given back.
        masks = torch.logit(torch.stack(guesses), eps=1e-4)[:, None]
    return Prompts(torch.from_numpy(np.array(boxes, np.float32)), points, labels, masks)


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("The refinement was cancelled; nothing was changed.")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - started
