# SPDX-License-Identifier: Apache-2.0
"""Refinement: from boxes to masks on the volume's own grid (after Wang et al.).

SAM is asked about every box (`prediction`). If its mask is rejected, the coarse one is kept
(`acceptance`); otherwise, in boxes that nobody edited or set a point in, its probabilities and a
network's count alike. Overlaps go to the organ with the highest probability x predicted IoU: inside
the liver's box SAM may confidently outline the kidney instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Volume

from ..boxes.boxes import Box, PointPrompt, SliceGrid
from ..boxes.coarse import CoarseMask
from ..boxes.key_frames import KeyFrames
from ..sam.crops import crops
from ..sam.embeddings import EmbeddingCache
from ..sam.models import SamModel
from ..sam.mosaic import Rectangle
from ..sam.prediction import Answer, MosaicMode, Place, Predictor, Progress, Question
from .acceptance import BLANK, DEFAULT_ACCEPTANCE, NO_BOX, Acceptance, rejection_reason
from .results import OrganReport, Outcome, Refinement, staying


@dataclass(frozen=True, eq=False)
class OrganPrompt:
    """The boxes, points and coarse mask of an organ.

    Attributes:
        frames: its boxes.
        coarse: (K, J, I) probabilities, or a bool mask; None if there is no coarse mask. Not to be
            written to while a `Refiner` knows it.
        points: by slice index; only slices with a box can have some.
        mask_prompt: give SAM the coarse mask as a mask prompt, and require the two to agree
            (`Acceptance`); in slices with an edited box neither is done, as the user disagrees with
            the coarse mask.
        keep_unboxed: slices without a box keep the coarse mask; else they show nothing, unless the
            organ had no automatic box at all.
        stays: the coarse mask stays as it is, and no other organ gets a voxel of it.
    """

    frames: KeyFrames
    coarse: np.ndarray | None = None
    points: Mapping[int, Sequence[PointPrompt]] = field(default_factory=dict)
    mask_prompt: bool = True
    keep_unboxed: bool = True
    stays: bool = False


def refine(
    volume: Volume,
    organs: Sequence[OrganPrompt],
    model: SamModel,
    *,
    modality: str | None = None,
    mosaic: MosaicMode = "crops",
    mask_threshold: float = 0.5,
    progress: Progress = lambda stage, fraction: None,
) -> Refinement:
    """Refine organs once; for the arguments see `Refiner` and `Refiner.refine`."""
    if not organs:
        raise PromptError("There is no organ to refine; make boxes first.")
    grid = SliceGrid(volume.geometry, organs[0].frames.grid.axis)
    refiner = Refiner(volume, grid, model, modality=modality, mosaic=mosaic)
    return refiner.refine(organs, mask_threshold=mask_threshold, progress=progress)


class Refiner:
    """A volume to be refined repeatedly: only what an edit changes is computed anew.

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
        taken: np.ndarray | None = None,
    ) -> None:
        """Prepare the volume; for the other arguments and errors see `Predictor`.

        Args:
            taken: bool (K, J, I), voxels of labels that stay as they are; no organ gets them.
        """
        self._geometry, self.grid, self._mosaic = volume.geometry, grid, mosaic
        self._taken = None if taken is None else grid.stack(taken)
        self._predictor = Predictor(
            volume, grid, model, modality=modality, mosaic=mosaic, cache=cache
        )
        self._coarse: dict[int, CoarseMask] = {}
        self._labels = np.zeros(volume.array.shape, np.uint8)
        # By slice index and label: the outcomes that the labels were combined from.
        self._combined: dict[int, dict[int, Outcome]] = {}

    @property
    def passes(self) -> int:
        """Number of canvases that were encoded so far."""
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
        """Return SAM's own estimate of its masks' IoU, mean over an organ's boxes, by label.

        Organs without a box are left out. The result, and later refinements, do not change.

        Raises:
            PromptError, DeviceError, Cancelled: as `refine`.
        """
        answers = self._predictor.anew().ask(self._questions(organs), progress, cancelled)
        estimates: dict[int, list[float]] = {}
        for (label, _), answer in answers.items():
            estimates.setdefault(label, []).append(answer.predicted_iou)
        return {label: float(np.mean(ious)) for label, ious in estimates.items()}

    def refine(
        self,
        organs: Sequence[OrganPrompt],
        *,
        mask_threshold: float = 0.5,
        acceptance: Acceptance = DEFAULT_ACCEPTANCE,
        progress: Progress = lambda stage, fraction: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Refinement:
        """Refine all organs within their boxes.

        Slices without a box keep the largest component of the coarse mask (but see
        `OrganPrompt.keep_unboxed`). Disabled slices, and those beyond the boxes' limit, show
        nothing.

        Args:
            organs: boxes, points and coarse masks.
            mask_threshold: threshold of SAM's probabilities (the paper's theta 2).
            acceptance: limits for accepting SAM's masks.
            progress: called with the stage and the fraction of it that is done.
            cancelled: called between canvases and between batches of boxes.

        Raises:
            PromptError: no organ, two with one label, boxes or coarse masks of another grid, a
                point outside its slice or in a slice without a box, an impossible `mask_threshold`.
            DeviceError: out of memory.
            Cancelled: `cancelled` returned True.
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
            label = organ.frames.label
            answered = {
                slice_index: (questions[other, slice_index].box, answer)
                for (other, slice_index), answer in answers.items()
                if other == label
            }
            outcomes[label] = self._outcomes(organ, answered, mask_threshold, acceptance)
        changed = self._combine(outcomes)
        reports = tuple(self._report(organ, outcomes[organ.frames.label]) for organ in organs)
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
        """Check the organs and return a question for each box, by label and slice index."""
        labels = [organ.frames.label for organ in organs]
        if not organs:
            raise PromptError("There is no organ to refine; make boxes first.")
        if len(set(labels)) < len(labels):
            raise PromptError(f"Two organs have the same label; their labels are {labels}.")
        questions = {}
        for organ in organs:
            frames = organ.frames
            frames.require(self.grid)
            coarse = self._coarse_of(organ)
            boxes = frames.effective()
            _check_points(organ, boxes)
            sources = self._sources(organ, boxes)
            for slice_index, box in boxes.items():
                points = tuple(organ.points.get(slice_index, ()))
                uses_coarse = organ.mask_prompt and _is_automatic(organ, slice_index, box)
                mask_prompt = coarse if uses_coarse else None
                question = Question(box, sources[slice_index], points, mask_prompt)
                questions[frames.label, slice_index] = question
        return questions

    def _coarse_of(self, organ: OrganPrompt) -> CoarseMask | None:
        """Return the coarse mask with its largest component, which is computed once."""
        label = organ.frames.label
        if organ.coarse is None:
            self._coarse.pop(label, None)
        elif label not in self._coarse or self._coarse[label].given is not organ.coarse:
            self._coarse[label] = CoarseMask(organ.coarse, self.grid)
        return self._coarse.get(label)

    def _sources(self, organ: OrganPrompt, boxes: Mapping[int, Box]) -> dict[int, Rectangle]:
        """Return the rectangle that SAM sees of each slice: all, or a crop around the prompts."""
        rows, columns = self.grid.shape
        if self._mosaic != "crops":
            return dict.fromkeys(boxes, (0, 0, columns, rows))
        needed = {}
        for slice_index, box in boxes.items():
            points = organ.points.get(slice_index, ())
            pixels = (Box(p.x - 0.5, p.y - 0.5, p.x + 0.5, p.y + 0.5) for p in points)
            inside = (pixel.clipped(self.grid.shape) for pixel in pixels)
            needed[slice_index] = Box.around([box, *inside])
        return crops(organ.frames.automatic, needed, self.grid)

    def _outcomes(
        self,
        organ: OrganPrompt,
        answered: Mapping[int, tuple[Box, Answer]],
        mask_threshold: float,
        acceptance: Acceptance,
    ) -> dict[int, Outcome]:
        """Decide on the organ in every slice with a box or a coarse mask, by slice index."""
        frames, coarse = organ.frames, self._coarse.get(organ.frames.label)
        if organ.stays and coarse is not None:
            return {k: staying(coarse, k) for k in coarse.voxels}
        unboxed: set[int] = set()
        if coarse is not None and (organ.keep_unboxed or not frames.automatic):
            within = range(self.grid.count)
            if frames.limit is not None:
                within = self.grid.slices_of(frames.limit)
            unboxed = (coarse.voxels.keys() & set(within)) - frames.off - answered.keys()
        outcomes = {}
        for slice_index in sorted(answered.keys() | unboxed):
            box, answer = answered.get(slice_index, (None, None))
            automatic = answer is not None and _is_automatic(organ, slice_index, box)
            limits = acceptance
            if not (automatic and organ.mask_prompt):
                limits = replace(acceptance, agreement=0.0)
            untouched = automatic and not organ.points.get(slice_index)
            basis = (coarse, box, answer, untouched, mask_threshold, limits)
            # The same object again if nothing changed: such slices are not combined anew.
            last = self._combined.get(slice_index, {}).get(frames.label)
            unchanged = last is not None and last.basis == basis
            outcomes[slice_index] = last if unchanged else self._outcome(slice_index, *basis)
        return outcomes

    def _outcome(
        self,
        slice_index: int,
        coarse: CoarseMask | None,
        box: Box | None,
        answer: Answer | None,
        untouched: bool,
        mask_threshold: float,
        acceptance: Acceptance,
    ) -> Outcome:
        """Choose SAM's mask of a slice or the coarse one.

        In an `untouched` slice, one with its automatic box and no points, the mean of both
        probabilities decides, if the coarse ones go on beside the mask.
        """
        basis = (coarse, box, answer, untouched, mask_threshold, acceptance)
        if answer is None:
            kept = coarse.probability(slice_index), coarse.component(slice_index)
            return Outcome(*kept, NO_BOX, None, 1.0, basis)
        probability = np.zeros(self.grid.shape, np.float16)
        x0, y0, x1, y1 = answer.source
        probability[y0:y1, x0:x1] = answer.probability
        mask = probability > mask_threshold
        weight = min(max(answer.predicted_iou, 0.01), 1.0)
        reason = BLANK
        if not answer.blank:
            rival = coarse.component(slice_index) if coarse is not None else None
            reason = rejection_reason(mask, box, answer.predicted_iou, rival, acceptance)
        if reason and coarse is not None:
            probability, mask = coarse.probability(slice_index), coarse.component(slice_index)
            weight = 1.0
        elif untouched and coarse is not None and coarse.graded:
            # The two err in different places (BENCHMARKS.md).
            probability = (probability + coarse.probability(slice_index)) / 2
            mask = probability > mask_threshold
        return Outcome(probability, mask, reason, answer.predicted_iou, weight, basis)

    def _combine(self, outcomes: Mapping[int, Mapping[int, Outcome]]) -> tuple[int, ...]:
        """Write changed slices into the labels and return their indices.

        Args:
            outcomes: by label and slice index.
        """
        needed = np.result_type(np.uint8, np.min_scalar_type(max(outcomes)))
        self._labels = self._labels.astype(needed, copy=False)
        by_slice: dict[int, dict[int, Outcome]] = {}
        for label in sorted(outcomes):
            for slice_index, outcome in outcomes[label].items():
                by_slice.setdefault(slice_index, {})[label] = outcome
        changed = [
            slice_index
            for slice_index in sorted(by_slice.keys() | self._combined.keys())
            if by_slice.get(slice_index) != self._combined.get(slice_index)
        ]
        stack = self.grid.stack(self._labels)
        for slice_index in changed:
            stack[slice_index] = 0
            best = np.zeros(self.grid.shape, np.float32)
            for label, outcome in by_slice.get(slice_index, {}).items():
                mask = outcome.mask
                if self._taken is not None:
                    mask = mask & ~self._taken[slice_index]
                claim = np.where(mask, outcome.probability * np.float32(outcome.weight), 0)
                stack[slice_index][claim > best] = label
                np.maximum(best, claim, out=best)
        self._combined = by_slice
        return tuple(changed)

    def _report(self, organ: OrganPrompt, outcomes: Mapping[int, Outcome]) -> OrganReport:
        """Compare an organ in the labels with its coarse mask."""
        label, coarse = organ.frames.label, self._coarse.get(organ.frames.label)
        stack = self.grid.stack(self._labels)
        before = sum(coarse.voxels.values()) if coarse is not None else 0
        after, shared = 0, 0
        for slice_index in outcomes:
            mask = stack[slice_index] == label
            after += int(mask.sum())
            if coarse is not None:
                shared += int((mask & coarse.shown(slice_index)).sum())
        total = before + after
        dice = 2 * shared / total if total else 1.0
        ious = [o.predicted_iou for o in outcomes.values() if o.predicted_iou is not None]
        return OrganReport(
            label,
            organ.frames.name,
            len(ious),
            {k: outcome.rejection for k, outcome in outcomes.items() if outcome.rejection},
            dice if coarse is not None else None,
            before,
            after,
            float(np.mean(ious)) if ious else None,
        )


def _is_automatic(organ: OrganPrompt, slice_index: int, box: Box) -> bool:
    """Tell whether the box of a slice is the automatic one, which nobody has edited."""
    return box == organ.frames.automatic.get(slice_index)


def _check_points(organ: OrganPrompt, boxes: Mapping[int, Box]) -> None:
    """Raise PromptError if a point lies outside its slice or in a slice without a box."""
    rows, columns = organ.frames.grid.shape
    for slice_index, points in organ.points.items():
        if points and slice_index not in boxes:
            raise PromptError(
                f'"{organ.frames.name}" has a point but no box in slice {slice_index}; draw a box '
                "there."
            )
        for point in points:
            if not (0 <= point.x <= columns and 0 <= point.y <= rows):
                raise PromptError(
                    f'The point ({point.x:g}, {point.y:g}) of "{organ.frames.name}" lies outside '
                    f"slice {slice_index}; set it within {columns} columns and {rows} rows."
                )
