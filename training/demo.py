# SPDX-License-Identifier: Apache-2.0
"""The demonstration: train on phantom CT, segment phantom MR; what SRC, SM and SAM bring."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan
from SAMRefineLib.refine.box_selection import refine_coarse
from SAMRefineLib.sam.catalogue import is_sam
from SAMRefineLib.sam.models import SamModel, load_sam
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample
from SRCSMSegmenterLib.volume_io import read_labels, write_labels

from .data.dataset import Case, Dataset, read_case, read_dataset
from .data.phantom import write_dataset
from .engine.checkpoint import CheckpointError
from .engine.estimate import duration, measure_training
from .engine.limits import Limits
from .engine.progress import Progress
from .engine.run_folder import write_text
from .evaluation.evaluate import Scoring, evaluate
from .evaluation.scores import summarise
from .plots import COLOURS, draw_slice, save
from .segmentation.config import TrainingConfig
from .segmentation.presets import preset
from .segmentation.run import run_training

CASES = {"CT": (8, 0), "MR": (3, 100)}
"""Phantom patients per modality, and the first one's seed; no patient is in both."""

TRAININGS = {"plain": "off", "SRC": "smoothed"}
VARIANTS = {
    "plain": ("plain", "off", False),
    "+ SRC": ("SRC", "off", False),
    "+ SRC and SM": ("SRC", "on", False),
    "+ SAM refinement": ("SRC", "on", True),
}
"""Row of the table: the training, the setting of source matching, and whether SAM refines."""

SAM = "sam-small-ct"
"""Of the source's modality: it has seen no MR, and no phantom."""

LEAST_STEPS = 900
"""Of each training; with fewer the rows of the table may change places."""

TEST_STEPS = 250
"""Training steps that take as long as segmenting and refining the MRs."""

MARGIN = 0.9
"""Share of the time that is planned for."""

Bar = Callable[[str, Progress, int, float], None]


class Countdown:
    """The time that is left of a number of steps, from the pace of those seen."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None

    def seconds_left(self, done: int, now: float) -> float:
        """Return the seconds until all steps are done; NaN at the first call: no pace is known yet.

        Args:
            done: steps done, more than at the call before.
            now: seconds on a clock that never goes back.
        """
        if self._first is None:
            self._first = (done, now)
            return math.nan
        before, then = self._first
        return (now - then) / (done - before) * (self._steps - done)


def run_demo(
    output: Path,
    minutes: float,
    say: Callable[[str], None] = print,
    bar: Bar = lambda title, progress, steps, seconds_left: None,
    steps: int | None = None,
) -> dict[str, dict[str, float]]:
    """Make phantoms, train on CT without and with SRC, segment the MRs, and compare.

    What lies in `output` from an earlier run is used again. Left there: the two datasets, the two
    runs and their number of steps, ``labels/VARIANT/CASE.seg.nrrd``, which open in Slicer, and
    ``overview.png``.

    Args:
        minutes: for all of it. The number of training steps is chosen to fit, from `LEAST_STEPS` to
            the preset's, unless an earlier run in `output` has chosen it.
        bar: called after every training step with the training's name, its progress, its number
            of steps, and the seconds left of the whole demonstration, NaN at the first.
        steps: of each training, whatever the time.

    Returns:
        Variant -> label -> mean Dice over the MRs, in the order of `VARIANTS`; "mean" is a label.
        Without the shipped SAM the last is left out.

    Raises:
        CheckpointError: an earlier run was of another version of the demonstration.
    """
    output, end = Path(output), time.monotonic() + 60 * minutes
    say("1/4  Making phantom patients, CT-like and MR-like ...")
    datasets = {modality: _phantoms(output, modality) for modality in CASES}
    steps = _number_of_steps(output, datasets["CT"], steps, end, say)
    bundles = _trained(output, datasets["CT"], steps, say, bar)

    say("4/4  Segmenting the MRs ...")
    sam = load_sam(SAM) if is_sam(shipped_models_folder() / SAM) else None
    if sam is None:
        say(f"There is no {SAM} among the shipped models: no refinement.")
    dice = {}
    for variant, (training, setting, refined) in VARIANTS.items():
        if refined and sam is None:
            continue
        bundle, folder = bundles[training], _labels(output, variant)
        dice[variant] = _test(bundle, datasets["MR"], setting, folder, sam if refined else None)
    rows = _rows(datasets, output, list(dice))
    overview(output / "overview.png", rows, list(datasets["MR"].labels))
    return dice


def _phantoms(output: Path, modality: str) -> Dataset:
    """Make a modality's dataset, if it is not there yet, and read it."""
    folder = output / f"Dataset{900 + (modality == 'MR')}_Phantom{modality}"
    if not (folder / "dataset.json").exists():
        write_dataset(folder, modality, *CASES[modality])
    return read_dataset(folder)


def _config() -> TrainingConfig:
    config = preset("abdomen-tiny")
    return replace(config, data=replace(config.data, folds=0))


def _number_of_steps(
    output: Path, source: Dataset, wanted: int | None, end: float, say: Callable[[str], None]
) -> int:
    """Take the number of steps that is wanted, was chosen before, or fits the time; keep it.

    Args:
        end: when the demonstration is to end, by the monotonic clock.
    """
    kept = output / "steps.json"
    if wanted is None and kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))["steps"]
    steps = wanted
    if steps is None:
        say("     Measuring how long a training step takes here ...")
        pace = _seconds_per_step(output, source)
        steps = steps_within(end - time.monotonic(), pace, _config().optimisation.steps)
        left = duration(_all_steps(steps) * pace)
        say(f"     {pace:.2g} s: {steps} steps of each training; about {left} left.")
    if not kept.exists():
        write_text(kept, json.dumps({"steps": steps}) + "\n")
    return steps


def _seconds_per_step(output: Path, source: Dataset) -> float:
    """Measure a training step on this machine."""

    training = partial(run_training, source.folder, cache=output / "cache")
    return measure_training(training, _config(), source.cases, "auto").seconds


def _trained(
    output: Path, source: Dataset, steps: int, say: Callable[[str], None], bar: Bar
) -> dict[str, ModelBundle]:
    """Train, or take what is trained already: the title of a training -> its network."""
    config = _config()
    config = replace(config, optimisation=replace(config.optimisation, steps=steps))
    countdown = Countdown(_all_steps(steps))
    bundles = {}
    for index, (title, mode) in enumerate(TRAININGS.items()):
        say(f"{index + 2}/4  Training on CT, {title} ({steps} steps) ...")

        def report(progress: Progress, title: str = title, before: int = steps * index) -> None:
            left = countdown.seconds_left(before + progress.step, time.monotonic())
            bar(title, progress, steps, left)

        try:
            result = run_training(
                source.folder,
                replace(config, random_convolution=mode),
                output / "runs" / title.lower(),
                cache=output / "cache",
                limits=Limits(say=lambda line: None, report=report),
            )
        except CheckpointError as error:  # such as one of another version's demonstration
            raise CheckpointError(f"{error} To begin anew, delete {output}.") from error
        bundles[title] = load_bundle(result.model)
    return bundles


def steps_within(seconds: float, pace: float, most: int) -> int:
    """Compute how many steps of each training fit a time with all that follows.

    Args:
        pace: seconds per step.
        most: limit of the steps; `LEAST_STEPS` is the other one.
    """
    fitting = (MARGIN * seconds / pace - TEST_STEPS) / len(TRAININGS)
    return min(most, max(LEAST_STEPS, int(fitting)))


def _all_steps(steps: int) -> int:
    """Add up the steps of all trainings, and what takes as long as `TEST_STEPS`."""
    return steps * len(TRAININGS) + TEST_STEPS


def _labels(output: Path, variant: str) -> Path:
    """Return the folder of a variant's label maps."""
    return output / "labels" / variant.removeprefix("+ ").replace(" ", "-")


def _test(
    bundle: ModelBundle, dataset: Dataset, setting: str, folder: Path, sam: SamModel | None
) -> dict[str, float]:
    """Segment, refine by a SAM, save and score every case; mean Dice per label and overall."""
    folder.mkdir(parents=True, exist_ok=True)
    names = iter(case.name for case in dataset.cases)

    def network(volume: Volume, matching: bool) -> Volume:
        modality, segments = dataset.modality, bundle.description.labels
        found = segment(
            volume,
            bundle,
            modality=modality,
            source_matching=matching,
            keep_largest=False,
        )
        labels = found.labels
        if sam is not None:
            grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
            organs = [
                CoarseOrgan(s.name, s.value, found.probabilities.whole(s.value)) for s in segments
            ]
            labels = refine_coarse(volume, organs, grid, sam, modality=modality).labels
        write_labels(folder / f"{next(names)}.seg.nrrd", labels, segments)
        return labels

    table = summarise(evaluate(network, [dataset], folder / "scores", [setting], Scoring(worst=0)))
    return dict(zip(table["label"], table["dice_mean"], strict=True))


def _rows(
    datasets: dict[str, Dataset], output: Path, variants: Sequence[str]
) -> list[list["Panel"]]:
    """Make one row per MR: a source CT, the MR with the truth, and each variant's labels."""
    rows = []
    for number, case in enumerate(datasets["MR"].cases):
        source = datasets["CT"].cases[number]
        rows.append(
            [
                _panel("source CT, truth", source, source.labels),
                _panel("target MR, truth", case, case.labels),
            ]
        )
        for variant in variants:
            labels = _labels(output, variant) / f"{case.name}.seg.nrrd"
            rows[-1].append(_panel(variant, case, labels))
    return rows


def _panel(title: str, case: Case, labels: Path) -> "Panel":
    """Draw the axial slice of a case that shows the organs best, in patient axes."""
    volume, truth = read_case(case)
    spec = GridSpec((200, 160, 60), (2.0, 2.0, 5.0))
    where = np.argwhere(truth.array > 0)[:, ::-1].mean(0)
    grid = spec.placed(volume.geometry.to_ras(where), np.eye(3))
    image = _resampled(volume, grid, "linear")
    areas = [
        np.count_nonzero(_resampled(truth, grid, "nearest") == value, axis=(1, 2))
        for value in np.unique(truth.array[truth.array > 0])
    ]
    k = int(np.argmax(np.sqrt(areas).sum(0)))  # the root favours many organs over a large one
    return Panel(title, image[k], _resampled(read_labels(labels), grid, "nearest")[k])


def _resampled(volume: Volume, grid: Geometry, mode: str) -> np.ndarray:
    lookup = look_up(points(index_map(grid, volume.geometry), grid.size), volume.geometry.shape)
    array = torch.from_numpy(volume.array.astype(np.float32))[None]
    return sample(array, lookup, mode, outside=float(array.min()))[0].numpy()


class Panel(NamedTuple):
    """One slice to show: image and labels (J, I) in patient axes (I to the right, J anterior)."""

    title: str
    image: np.ndarray
    labels: np.ndarray
    aspect: float = 1.0  # J spacing over I spacing


def overview(path: Path, rows: Sequence[Sequence[Panel]], organs: Sequence[str]) -> None:
    """Draw one PNG: a row per case, a panel per look at it, organs in one set of colours.

    Args:
        rows: the same number of panels each, e.g. source CT with its labels, target MR with the
            truth, then the target with the prediction of each variant.
        organs: names of the labels 1, 2, ... for the legend.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(2.9 * columns, 2.7 * len(rows) + 0.4))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, panels, strict=True):
            draw_slice(axes, panel.image, panel.labels, panel.title, panel.aspect)
    patches = [
        Patch(color=COLOURS[n % len(COLOURS)], label=organ) for n, organ in enumerate(organs)
    ]
    figure.legend(handles=patches, loc="lower center", ncols=len(organs), frameon=False)
    save(figure, path)
