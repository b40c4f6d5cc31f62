# SPDX-License-Identifier: Apache-2.0
"""From boxes to masks on the volume's own grid (after Wang et al.).

SAM is asked about every box (`prediction`); where its mask is not to be trusted, the coarse one
stays (`acceptance`). Where organs claim the same voxel, the more probable one has it; SAM's
probability counts by its own estimate of the mask: with the box of a liver it may be sure of the
kidney in it, but not that this is the mask that was wanted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Volume

from ..boxes.boxes import Box, SliceGrid
from ..boxes.coarse import CoarseMask
from ..boxes.key_frames import KeyFrames
from ..sam.crops import around, crops
from ..sam.embeddings import EmbeddingCache
from ..sam.models import SamModel
from ..sam.mosaic import Rectangle
from ..sam.prediction import Answer, MosaicMode, Place, Point, Predictor, Progress, Question
from .acceptance import BLANK, DEFAULT_TRUST, NO_BOX, Trust, rejection_reason


@dataclass(frozen=True, eq=False)
class OrganPrompt:
    """What is known of an organ.

    Attributes:
        frames: its boxes.
        coarse: (K, J, I) probabilities, or a bool mask; None where there is no coarse mask. Not to
            be written to while a `Refiner` knows it.
        points: by slice number; only slices with a box can have some.
        mask_prompt: give SAM the coarse mask as its first guess, and want the two to agree
            (`Trust`); not so where a box was edited: who edits it disagrees with the coarse mask.
        keep_unboxed: slices without a box keep the coarse mask; else they show nothing, unless the
            organ had no automatic box at all.
    """

    frames: KeyFrames
    coarse: np.ndarray | None = None
    points: Mapping[int, Sequence[Point]] = field(default_factory=dict)
    mask_prompt: bool = True
    keep_unboxed: bool = True


@dataclass(frozen=True)
class OrganReport:
    """What happened to an organ.

    Attributes:
        boxes: number of slices that SAM was asked about.
        kept: why the coarse mask stayed, by slice number; where there is no coarse mask, why SAM's
            mask, which stayed, may be bad.
        dice: between the coarse mask and the result; None without a coarse mask.
        voxels_before, voxels_after: of the coarse mask and of the result.
        predicted_iou: SAM's own estimate, mean over its slices; None without any.
    """

    value: int
    name: str
    boxes: int
    kept: dict[int, str]
    dice: float | None
    voxels_before: int
    voxels_after: int
    predicted_iou: float | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """An organ in one slice, (rows, columns).

    Attributes:
        probability: float16.
        mask: bool, what the organ claims.
        kept: why SAM was not trusted; None where it was.
        predicted_iou: None where SAM was not asked.
        weight: what the probability counts where organs compete.
        basis: all that this was decided by.
    """

    probability: np.ndarray
    mask: np.ndarray
    kept: str | None
    predicted_iou: float | None
    weight: float
    basis: tuple


@dataclass(frozen=True, eq=False)
class Refinement:
    """The result on the volume's own grid.

    Attributes:
        labels: uint8 (uint16 where a value needs it).
        reports: one per organ, in the order of the prompts.
        changed: numbers of the slices that were decided anew; no others differ from the result
            before.
        encoder_passes: canvases that had to be encoded.
        seconds: duration per stage: "encode", "decode".
        outcomes: by label and slice number.
    """

    labels: Volume
    reports: tuple[OrganReport, ...]
    changed: tuple[int, ...]
    encoder_passes: int
    seconds: dict[str, float]
    grid: SliceGrid
    outcomes: dict[int, dict[int, Outcome]]

    def probability(self, value: int) -> np.ndarray:
        """(K, J, I) float16 of the organ with that label; 0 in slices that show nothing of it."""
        found = np.zeros(self.labels.array.shape, np.float16)
        stack = self.grid.stack(found)
        for n, outcome in self.outcomes[value].items():
            stack[n] = outcome.probability
        return found

    def confidence(self) -> np.ndarray:
        """(K, J, I) float16: the probability of what each voxel is labelled."""
        sure = np.ones(self.labels.array.shape, np.float16)
        stack, labels = self.grid.stack(sure), self.grid.stack(self.labels.array)
        for value, outcomes in self.outcomes.items():
            for n, outcome in outcomes.items():
                # A label's own probability in it; on background one less the largest of all.
                np.minimum(stack[n], 1 - outcome.probability, out=stack[n], where=labels[n] == 0)
                np.copyto(stack[n], outcome.probability, where=labels[n] == value)
        return sure


def refine(
    volume: Volume,
    organs: Sequence[OrganPrompt],
    model: SamModel,
    *,
    modality: str | None = None,
    mosaic: MosaicMode = "crops",
    mask_threshold: float = 0.5,
    trust: Trust = DEFAULT_TRUST,
    cache: EmbeddingCache | None = None,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Refinement:
    """Refine organs once; for the arguments see `Refiner` and `Refiner.refine`."""
    if not organs:
        raise PromptError("There is no organ to refine; make boxes first.")
    grid = SliceGrid(volume.geometry, organs[0].frames.grid.axis)
    refiner = Refiner(volume, grid, model, modality=modality, mosaic=mosaic, cache=cache)
    return refiner.refine(
        organs,
        mask_threshold=mask_threshold,
        trust=trust,
        progress=progress,
        cancelled=cancelled,
    )


class Refiner:
    """A volume to be refined again and again: only what an edit changes is computed anew.

    Attributes:
        grid: its slices.
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
        """For the arguments and errors see `Predictor`."""
        self._geometry, self.grid, self._mosaic = volume.geometry, grid, mosaic
        self._predictor = Predictor(
            volume, grid, model, modality=modality, mosaic=mosaic, cache=cache
        )
        self._coarse: dict[int, CoarseMask] = {}
        self._labels = np.zeros(volume.array.shape, np.uint8)
        self._shown: dict[int, dict[int, Outcome]] = {}  # by slice: what its labels come from

    @property
    def passes(self) -> int:
        """Canvases that went through the encoder so far."""
        return self._predictor.passes

    def embed(
        self,
        organs: Sequence[OrganPrompt],
        *,
        progress: Progress = lambda stage, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute the embeddings that `refine` will need.

        Raises:
            PromptError, DeviceError, Cancelled: as `refine`.
        """
        self._predictor.embed(self._questions(organs), progress, cancelled)

    def estimates(
        self,
        organs: Sequence[OrganPrompt],
        *,
        progress: Progress = lambda stage, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[int, float]:
        """SAM's own estimate of its masks' IoU, mean over the boxes of each organ that has some, by
        label. The result, and what is refined later, stay as they are.

        Raises:
            PromptError, DeviceError, Cancelled: as `refine`.
        """
        answers = self._predictor.anew().ask(self._questions(organs), progress, cancelled)
        found: dict[int, list[float]] = {}
        for (value, _), answer in answers.items():
            found.setdefault(value, []).append(answer.predicted_iou)
        return {value: float(np.mean(ious)) for value, ious in found.items()}

    def refine(
        self,
        organs: Sequence[OrganPrompt],
        *,
        mask_threshold: float = 0.5,
        trust: Trust = DEFAULT_TRUST,
        progress: Progress = lambda stage, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Refinement:
        """Masks for the boxes of all organs.

        Slices without a box keep the coarse mask (but see `OrganPrompt.keep_unboxed`) without
        strays: pieces apart from the organ's largest. Slices that are switched off, or lie beyond
        the boxes' limit, show nothing.

        Args:
            mask_threshold: of SAM's probabilities (the paper's theta 2).
            trust: when to keep the coarse mask.
            progress: called with the stage and the fraction of it that is done.
            cancelled: asked between two canvases and between two batches of boxes.

        Raises:
            PromptError: no organ, two with one label, boxes or coarse masks of another grid, a
                point outside its slice or in a slice without a box, an impossible `mask_threshold`.
            DeviceError: out of memory.
            Cancelled: `cancelled` said so.
        """
        if not 0 < mask_threshold < 1:
            raise PromptError(
                f"A mask threshold of {mask_threshold:g} is not a probability between 0 and 1."
            )
        passes, seconds = self.passes, dict(self._predictor.seconds)
        questions = self._questions(organs)
        answers = self._predictor.ask(questions, progress, cancelled)
        progress("combine", 0.0)
        outcomes = {}
        for organ in organs:
            value = organ.frames.value
            found = {
                n: (questions[other, n].box, answer)
                for (other, n), answer in answers.items()
                if other == value
            }
            outcomes[value] = self._outcomes(organ, found, mask_threshold, trust)
        changed = self._combine(outcomes)
        reports = tuple(self._report(organ, outcomes[organ.frames.value]) for organ in organs)
        progress("combine", 1.0)
        return Refinement(
            Volume(self._labels.copy(), self._geometry),
            reports,
            changed,
            self.passes - passes,
            {stage: s - seconds[stage] for stage, s in self._predictor.seconds.items()},
            self.grid,
            outcomes,
        )

    def _questions(self, organs: Sequence[OrganPrompt]) -> dict[Place, Question]:
        """One for each organ and slice with a box, everything about them checked."""
        values = [organ.frames.value for organ in organs]
        if not organs:
            raise PromptError("There is no organ to refine; make boxes first.")
        if len(set(values)) < len(values):
            raise PromptError(f"Two organs have the same label; their labels are {values}.")
        questions = {}
        for organ in organs:
            frames = organ.frames
            frames.require(self.grid)
            coarse = self._coarse_of(organ)
            boxes = frames.effective()
            _check_points(organ, boxes)
            sources = self._sources(organ, boxes)
            for n, box in boxes.items():
                points = tuple(organ.points.get(n, ()))
                guess = coarse if _counts_coarse(organ, n, box) else None
                questions[frames.value, n] = Question(box, sources[n], points, guess)
        return questions

    def _coarse_of(self, organ: OrganPrompt) -> CoarseMask | None:
        """What there is to know of the coarse mask, found out once."""
        value = organ.frames.value
        if organ.coarse is None:
            self._coarse.pop(value, None)
        elif value not in self._coarse or self._coarse[value].given is not organ.coarse:
            self._coarse[value] = CoarseMask(organ.coarse, self.grid)
        return self._coarse.get(value)

    def _sources(self, organ: OrganPrompt, boxes: Mapping[int, Box]) -> dict[int, Rectangle]:
        """What SAM gets to see: the slices, or crops with their boxes and points."""
        rows, columns = self.grid.shape
        if self._mosaic != "crops":
            return dict.fromkeys(boxes, (0, 0, columns, rows))
        needed = {}
        for n, box in boxes.items():
            points = organ.points.get(n, ())
            hints = (Box(p.x - 0.5, p.y - 0.5, p.x + 0.5, p.y + 0.5) for p in points)
            needed[n] = around([box, *(hint.clipped(self.grid.shape) for hint in hints)])
        return crops(organ.frames.automatic, needed, self.grid)

    def _outcomes(
        self,
        organ: OrganPrompt,
        found: Mapping[int, tuple[Box, Answer]],
        mask_threshold: float,
        trust: Trust,
    ) -> dict[int, Outcome]:
        """The organ in every slice where it has a box or a coarse mask, by slice number."""
        frames, coarse = organ.frames, self._coarse.get(organ.frames.value)
        unboxed: set[int] = set()
        if coarse is not None and (organ.keep_unboxed or not frames.automatic):
            within = range(self.grid.count)
            if frames.limit is not None:
                within = self.grid.slices_of(frames.limit)
            unboxed = (coarse.voxels.keys() & set(within)) - frames.off - found.keys()
        outcomes = {}
        for n in sorted(found.keys() | unboxed):
            box, answer = found.get(n, (None, None))
            agree = answer is not None and _counts_coarse(organ, n, box)
            basis = (coarse, box, answer, agree, mask_threshold, trust)
            # The same object again where nothing changed: such slices are not combined anew.
            last = self._shown.get(n, {}).get(frames.value)
            unchanged = last is not None and last.basis == basis
            outcomes[n] = last if unchanged else self._outcome(n, *basis)
        return outcomes

    def _outcome(
        self,
        n: int,
        coarse: CoarseMask | None,
        box: Box | None,
        answer: Answer | None,
        agree: bool,
        mask_threshold: float,
        trust: Trust,
    ) -> Outcome:
        """SAM's mask of a slice, or the coarse one; `agree` asks them to be alike."""
        basis = (coarse, box, answer, agree, mask_threshold, trust)
        if answer is None:
            return Outcome(coarse.probability(n), coarse.piece(n), NO_BOX, None, 1.0, basis)
        probability = np.zeros(self.grid.shape, np.float16)
        x0, y0, x1, y1 = answer.source
        probability[y0:y1, x0:x1] = answer.probability
        mask = probability > mask_threshold
        weight = min(max(answer.predicted_iou, 0.01), 1.0)
        reason = BLANK
        if not answer.blank:
            rival = coarse.piece(n) if coarse is not None and agree else None
            reason = rejection_reason(mask, box, answer.predicted_iou, rival, trust)
        if reason and coarse is not None:
            probability, mask, weight = coarse.probability(n), coarse.piece(n), 1.0
        return Outcome(probability, mask, reason, answer.predicted_iou, weight, basis)

    def _combine(self, outcomes: Mapping[int, Mapping[int, Outcome]]) -> tuple[int, ...]:
        """Write what differs from last time into the labels; returns these slices' numbers."""
        needed = np.result_type(np.uint8, np.min_scalar_type(max(outcomes)))
        self._labels = self._labels.astype(needed, copy=False)
        by_slice: dict[int, dict[int, Outcome]] = {}
        for value in sorted(outcomes):
            for n, outcome in outcomes[value].items():
                by_slice.setdefault(n, {})[value] = outcome
        changed = [
            n
            for n in sorted(by_slice.keys() | self._shown.keys())
            if by_slice.get(n) != self._shown.get(n)
        ]
        stack = self.grid.stack(self._labels)
        for n in changed:
            stack[n] = 0
            best = np.zeros(self.grid.shape, np.float32)
            for value, outcome in by_slice.get(n, {}).items():
                claim = np.where(outcome.mask, outcome.probability * np.float32(outcome.weight), 0)
                stack[n][claim > best] = value
                np.maximum(best, claim, out=best)
        self._shown = by_slice
        return tuple(changed)

    def _report(self, organ: OrganPrompt, outcomes: Mapping[int, Outcome]) -> OrganReport:
        value, coarse = organ.frames.value, self._coarse.get(organ.frames.value)
        stack = self.grid.stack(self._labels)
        before = sum(coarse.voxels.values()) if coarse is not None else 0
        after, shared = 0, 0
        for n in outcomes:
            mask = stack[n] == value
            after += int(mask.sum())
            if coarse is not None:
                shared += int((mask & coarse.shown(n)).sum())
        total = before + after
        dice = 2 * shared / total if total else 1.0
        ious = [o.predicted_iou for o in outcomes.values() if o.predicted_iou is not None]
        return OrganReport(
            value,
            organ.frames.name,
            len(ious),
            {n: outcome.kept for n, outcome in outcomes.items() if outcome.kept},
            dice if coarse is not None else None,
            before,
            after,
            float(np.mean(ious)) if ious else None,
        )


def _counts_coarse(organ: OrganPrompt, n: int, box: Box) -> bool:
    """True where SAM is to see the coarse mask, and to agree with it."""
    return organ.mask_prompt and box == organ.frames.automatic.get(n)


def _check_points(organ: OrganPrompt, boxes: Mapping[int, Box]) -> None:
    rows, columns = organ.frames.grid.shape
    for n, points in organ.points.items():
        if points and n not in boxes:
            raise PromptError(
                f'"{organ.frames.name}" has a point but no box in slice {n}; draw a box there.'
            )
        for point in points:
            if not (0 <= point.x <= columns and 0 <= point.y <= rows):
                raise PromptError(
                    f'The point ({point.x:g}, {point.y:g}) of "{organ.frames.name}" lies outside '
                    f"slice {n}; set it within {columns} columns and {rows} rows."
                )
