# SPDX-License-Identifier: Apache-2.0
"""SAM's answers to prompts in the slices of a volume, each computed only once.

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

from SRCSMSegmenterLib.errors import BundleError, Cancelled
from SRCSMSegmenterLib.geometry import Volume

from ..boxes.boxes import Box, PointPrompt, SliceGrid
from ..boxes.coarse import CoarseMask
from .decoding import Prompts, decode
from .embeddings import EmbeddingCache
from .models import SamModel
from .mosaic import Mosaic, Rectangle, Tile, mask_from_tile, mask_to_tile, pack
from .pixels import to_pixels

MosaicMode = Literal["slices", "crops", "off"]
"""What tiles show: whole slices ("slices"), squares around the organ of one size ("crops"), or a
canvas for each slice ("off")."""

TILE_PATCHES = 16
"""Side of a crop's tile, and least side of a slice's, in patches: 256 pixels of an official SAM, of
which sixteen fill a canvas; 128 pixels, one window, of a small one."""

CANVASES_AT_ONCE = 4
BOXES_AT_ONCE = 16

Progress = Callable[[str, float], None]
"""Called with the stage and the fraction of it that is done."""

Place = tuple[int, int]
"""An organ's label and a slice index."""


@dataclass(frozen=True)
class Question:
    """The prompts for an organ in a slice.

    Attributes:
        box: the box around the organ.
        source: the rectangle of the slice that SAM sees.
        points: points in the organ or outside.
        mask_prompt: the coarse mask that SAM is given as well, or None.
    """

    box: Box
    source: Rectangle
    points: tuple[PointPrompt, ...] = ()
    mask_prompt: CoarseMask | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """SAM's mask for a question.

    Attributes:
        probability: float16 (rows, columns) on the `source` rectangle of the slice.
        source: the rectangle of the slice that SAM saw.
        predicted_iou: SAM's own estimate of the mask's IoU.
        blank: True if the rectangle has one intensity only.
    """

    probability: np.ndarray
    source: Rectangle
    predicted_iou: float
    blank: bool


@dataclass(frozen=True, eq=False)
class _Canvas:
    """A canvas of a mosaic, and the tiles on it that questions refer to."""

    mosaic: Mosaic
    number: int
    tiles: dict[Place, Tile]


class Predictor:
    """A volume to be asked about repeatedly: only new questions are computed.

    Attributes:
        seconds: time spent so far on each stage, "encode" and "decode".
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
            volume: raw intensities (K, J, I).
            grid: its slices.
            model: the SAM.
            modality: "CT" or "MR"; None guesses.
            mosaic: what tiles show.
            cache: a cache of embeddings, which may be shared; None makes one.

        Raises:
            VolumeError: NaN or infinite voxels.
        """
        self.seconds = {"encode": 0.0, "decode": 0.0}
        self._grid, self._model, self._mode = grid, model, mosaic
        self._cache = EmbeddingCache() if cache is None else cache
        self._pixels = to_pixels(grid.stack(volume.array), model.pixels, modality)
        # Rectangles that share canvases, in order. They are only ever appended, so that existing
        # canvases and their cached embeddings stay valid.
        self._layouts: dict[int, dict[int, Rectangle]] = {}
        self._answers: dict[Place, tuple[Question, Answer]] = {}

    def anew(self) -> Self:
        """Return a predictor that shares pixels and embeddings, but has no questions yet.

        Questions to it leave the layouts of this one as they are.
        """
        other = copy.copy(self)
        other._layouts, other._answers = {}, {}
        return other

    @property
    def passes(self) -> int:
        """Number of canvases that were encoded so far."""
        return self._cache.passes

    def embed(
        self,
        questions: Mapping[Place, Question],
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        """Compute the embeddings that answers to the questions will need.

        Raises:
            DeviceError: out of memory.
            Cancelled: `cancelled`, called between two canvases, returned True.
        """
        for _ in self._embedded(questions, progress, cancelled):
            pass

    def ask(
        self,
        questions: Mapping[Place, Question],
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> dict[Place, Answer]:
        """Answer questions; a question that was asked before gets the same object again.

        Raises:
            DeviceError: out of memory.
            Cancelled: `cancelled`, called between canvases and batches of boxes, returned True.
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
        """Yield the canvases that questions need, a few at a time, with embeddings (C, h, w)."""
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
        """Lay out the rectangles that questions need, in addition to the existing ones."""
        wanted: dict[int, list[int]] = {}
        for label, slice_index in sorted(questions):
            # Whole slices are shared by all organs, crops belong to one, or each slice is separate.
            layout = {"slices": 0, "crops": label, "off": slice_index}[self._mode]
            source = questions[label, slice_index].source
            self._layouts.setdefault(layout, {})[slice_index] = source
            wanted.setdefault(layout, []).append((label, slice_index))
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
        """Answer the questions on some canvases; those on tiles of one size are one batch.

        Args:
            canvases: the canvases.
            embeddings: (C, h, w) of each.
        """
        alike: dict[tuple, list[tuple[Place, Tile, torch.Tensor]]] = {}
        for canvas, embedding in zip(canvases, embeddings, strict=True):
            for place, tile in canvas.tiles.items():
                rows, columns = tile.patches(self._model.patch)
                part = embedding[:, rows, columns]
                kind = (part.shape, questions[place].mask_prompt is None)
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
                if not (logits.isfinite().all() and ious.isfinite().all()):
                    raise BundleError(
                        f"The masks of {self._model.name} are not finite; take another SAM."
                    )
                for place, tile, logit, iou in zip(
                    places, tiles, logits, ious.tolist(), strict=True
                ):
                    answer = self._answer(place[1], tile, logit, iou)
                    self._answers[place] = questions[place], answer

    def _answer(self, slice_index: int, tile: Tile, logits: torch.Tensor, iou: float) -> Answer:
        """Convert logits (h, w) of a tile to an answer on the pixels of its slice."""
        probability = mask_from_tile(logits, tile, self._model.patch).sigmoid()
        x0, y0, x1, y1 = tile.source
        blank = bool(np.ptp(self._pixels[slice_index, y0:y1, x0:x1]) == 0)
        return Answer(probability.half().cpu().numpy(), tile.source, iou, blank)


def lay_out(
    pixels: np.ndarray,
    sources: Mapping[int, Rectangle],
    grid: SliceGrid,
    model: SamModel,
    mode: MosaicMode,
) -> Mosaic:
    """Lay rectangles of slices out on canvases.

    Args:
        pixels: (slices, rows, columns), all slices of the grid, ready for the model's encoder.
        sources: the rectangle to show, by slice index.
        grid: the slices.
        model: the SAM that will see the canvases.
        mode: what tiles show.
    """
    tile = min(TILE_PATCHES * model.patch, model.canvas)
    at_least, at_most = {
        "slices": (tile, model.canvas),
        "crops": (tile, tile),
        "off": (model.canvas, model.canvas),
    }[mode]
    row_mm, column_mm = grid.spacing
    return pack(
        [pixels[k] for k in sources],
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
    """Convert questions to prompts on their tiles; all or none of them have a mask prompt."""
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
    if asked[0].mask_prompt is not None:
        mask_prompts = [
            mask_to_tile(question.mask_prompt.probability(slice_index), tile, patch)
            for question, (_, slice_index), tile in zip(asked, places, tiles, strict=True)
        ]
        # Limited to the range of SAM's own logits, which it was trained on as prompts.
        masks = torch.logit(torch.stack(mask_prompts), eps=1e-4)[:, None]
    return Prompts(torch.from_numpy(np.array(boxes, np.float32)), points, labels, masks)


def _stop_if(cancelled: Callable[[], bool]) -> None:
    """Raise Cancelled if the caller requests it."""
    if cancelled():
        raise Cancelled("The refinement was cancelled; nothing was changed.")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent in the context to a stage."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - started
