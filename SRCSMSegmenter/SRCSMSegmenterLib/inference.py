# SPDX-License-Identifier: Apache-2.0
"""Segmentation of a scan with a trained network (Thaler et al. 2026).

The scan's intensities are scaled by the rule of its own modality or, with source matching, given
the source's distribution. They are smoothed on the scan's own grid and sampled by windows placed as
in training. The windows' probabilities are averaged on one grid of the network's spacing and then
interpolated linearly onto the scan's grid; each voxel gets its likeliest label.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import intensity
from .air import find_air, without_air
from .decision import Decision, decide
from .devices import out_of_memory, resolve_device
from .errors import BundleError, DeviceError
from .field_of_view import (
    body_steps,
    covering_grid,
    sampled_body_extent,
    scan_extent,
    thin_scan_doubts,
    window_starts,
)
from .geometry import (
    Geometry,
    GridSpec,
    Volume,
    as_volume,
    require_patient_scale,
    scale_doubts,
)
from .intensity import IntensityRule
from .label_probabilities import LabelProbabilities
from .modality import clue, doubts, guess_modality
from .models.bundle import ModelBundle, load_bundle
from .organ_positions import keep_likeliest_component
from .resampling import index_map, points
from .separable import sample_smoothed
from .source_matching import matched_voxels
from .window_blending import Triple, blend, window_slices

OVERLAP = 0.5
"""Share of a window that its neighbours cover too, if one window does not suffice."""

BEYOND = 1e-3
"""Weight of network voxels whose middle lies beyond the scan; not 0, as a scan may have no other
nearby."""

ProgressCallback = Callable[[str, float], None]

BlockFunction = Callable[[np.ndarray], np.ndarray]
"""From a block of a scan's voxels to scaled float32 of the same shape."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The labels of a scan and how certain they are, on the scan's own grid.

    Attributes:
        labels: label map, (K, J, I) uint8, or uint16 with more than 255 labels.
        confidence: computes float16 (K, J, I), the winning label's probability, or one minus that
            if a component was relabelled as background; 0 beyond all windows, which is
            background.
        mean_confidence: of the voxels of each label that has any.
        probabilities: of each label, interpolated when asked for; 0 beyond the box in which the
            label is plausible.
        least_certain: per label, (slice, uncertainty) of all slices in which the label is
            plausible, counted from 0 along the scan's `Geometry.slice_axis`: the least certain ones
            that are `decision.SEPARATION` apart first, then the others, either in the order of
            their uncertainty. That is the area expected to be labelled wrongly, sum of
            min(p, 1 - p) over the slice, divided by the square root of the label's expected area,
            sum of p: about the width in mm of its uncertain rim, so large and small cross-sections
            compare, and a faint, missed organ comes first.
        messages: what the user should know, a sentence each.
        seconds: duration per stage: "prepare", "network", "resample".
    """

    labels: Volume
    confidence: Callable[[], np.ndarray]
    mean_confidence: dict[int, float]
    probabilities: LabelProbabilities
    least_certain: dict[int, list[tuple[int, float]]]
    messages: list[str]
    seconds: dict[str, float]


def segment(
    volume: Volume | np.ndarray | torch.Tensor,
    bundle: ModelBundle | str | Path,
    *,
    affine: np.ndarray | None = None,
    modality: str | None = None,
    source_matching: bool = True,
    device: str | torch.device = "auto",
    keep_largest: bool = True,
    progress: ProgressCallback = lambda stage, fraction: None,
) -> Segmentation:
    """Segment a scan of any modality, spacing, orientation and size.

    A left-handed scan is mirrored along K for the network, as Slicer mirrors it on reading, so that
    a file gets the same labels here as there, voxel for voxel. The network computes in fp32
    whatever the device, so that processors and GPUs agree.

    Args:
        volume, affine: raw intensities, (K, J, I); or what `as_volume` takes.
        bundle: a network, its folder, or the name of a shipped one.
        modality: "CT" or "MR"; None takes the volume's or guesses (`guess_modality`) and says so
            in the messages, among the volume's remarks and `doubts`.
        source_matching: match the scan onto the bundle's source histogram. Without, the network
            gets the scan normalised by the rule of its own modality. It is meant for other
            modalities than the source's: `source_matching.wanted` decides so by "auto".
        device: see `resolve_device`.
        keep_largest: keep only one connected piece of every label, the largest unless another one
            lies where the organ should (`keep_likeliest_component`). The rest becomes background,
            and its label's probability there 0. Switch it off for labels that are several pieces.
        progress: called with the stage and the fraction of the whole that is done, once per window.
            It starts again if memory ran out. An error it raises, such as `Cancelled`, stops the
            segmentation.

    Raises:
        VolumeError: NaN or infinite voxels, an MR volume without a positive maximum, or no scan.
        SourceMatchingError: too few distinct intensities; run without source matching.
        BundleError: the network's output is not finite.
        DeviceError: unknown or absent device, or too little memory even on the CPU.
    """
    device = resolve_device(str(device))
    volume = as_volume(volume, affine)
    bundle = bundle if isinstance(bundle, ModelBundle) else load_bundle(bundle)
    stored = volume.geometry
    require_patient_scale(stored)
    if stored.left_handed:
        volume = replace(volume, array=volume.array[::-1], geometry=stored.mirrored())
    seconds: dict[str, float] = {}
    progress("prepare", 0.0)
    with _timed(seconds, "prepare"):
        modality, messages = _modality_of(volume, modality)
        messages += thin_scan_doubts(volume.geometry, bundle.description.grid)
        own_rule = replace(bundle.description.rule, modality=modality)
        voxels, rule = _network_intensities(volume.array, bundle, own_rule, source_matching)
        prepared = _prepare(*voxels, volume.geometry, bundle)
        if modality == "CT" and bundle.description.airless:
            prepared = replace(prepared, air=find_air(*voxels, prepared.image, own_rule))
    run_input = _RunInput(prepared, volume.geometry, bundle, rule, progress, seconds)
    decision = _run_within_memory(run_input, device, messages)
    labels, probabilities = decision.labels, decision.probabilities
    with _timed(seconds, "resample"):
        if keep_largest:
            kept = keep_likeliest_component(
                labels, probabilities.within, volume.geometry, bundle.offsets
            )
            probabilities = probabilities.without(kept.left_out)
            messages += kept.messages(bundle.description.labels, volume.geometry.voxel_ml)
            means = kept.means
        else:
            means = probabilities.means(labels)
    progress("resample", 1.0)
    least_certain = decision.least_certain
    if stored.left_handed:
        labels, probabilities = labels[::-1], probabilities.mirror()
    if stored.left_handed and stored.slice_axis == 2:
        least_certain = _mirrored_slices(least_certain, stored.size[2])
    return Segmentation(
        Volume(labels, stored),
        partial(probabilities.confidence, labels),
        means,
        probabilities,
        least_certain,
        messages,
        seconds,
    )


def _modality_of(volume: Volume, modality: str | None) -> tuple[str, list[str]]:
    """Take the modality that is given, the volume's or a guess; return it and messages."""
    messages = list(volume.remarks)
    modality = modality or volume.modality
    if modality is None:
        modality = guess_modality(volume.array)
        messages.append(f"Taken for {modality}: {clue(volume.array)}, as air and fat are in a CT.")
    messages += scale_doubts(volume.geometry)
    return modality, messages + doubts(modality, volume.array)


def _network_intensities(
    array: np.ndarray, bundle: ModelBundle, own_rule: IntensityRule, source_matching: bool
) -> tuple[tuple[np.ndarray, BlockFunction], IntensityRule]:
    """Scale a scan, or match it to the source, block by block.

    Args:
        array: (K, J, I) raw intensities.
        own_rule: the bundle's rule for the scan's own modality.

    Returns:
        Voxels (K, J, I) with the function that makes scaled float32 of any block of them, and the
        rule by which to normalise these.
    """
    if source_matching:
        return matched_voxels(array, own_rule, bundle.histogram), bundle.description.rule
    return intensity.scaled_voxels(array, own_rule), own_rule


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A scan on a grid of the network's spacing that covers it.

    Attributes:
        image: (K, J, I) float32, scaled, smoothed and resampled.
        inside: (K, J, I) bool, whether a voxel's middle lies within the scan.
        starts: first index (i, j, k) of each window.
        air: (K, J, I) bool, if the scan tells: whether a voxel is air alone.
    """

    image: torch.Tensor
    inside: torch.Tensor
    grid: Geometry
    starts: list[Triple]
    air: torch.Tensor | None = None


def _prepare(
    array: np.ndarray, convert: BlockFunction, scan: Geometry, bundle: ModelBundle
) -> _Prepared:
    """Smooth a scan and sample it on the grid that the windows lie on, straight from its voxels.

    Args:
        array: (K, J, I) voxels on `scan`.
        convert: makes scaled float32 of any block of them.
    """
    grid, sigma = bundle.description.grid, bundle.description.smoothing
    seen = _thickened(scan, grid)
    coarse = sample_smoothed(array, convert, scan, sigma, _strided(seen))
    body = sampled_body_extent(coarse.numpy(), seen, grid)
    covering, starts = covering_grid(body, scan_extent(seen, grid), grid, OVERLAP)
    image = sample_smoothed(array, convert, scan, sigma, covering)
    positions = points(index_map(covering, seen), covering.size)
    last = torch.tensor(seen.size) - 0.5
    inside = ((positions > -0.5) & (positions < last)).all(-1)
    return _Prepared(image.masked_fill_(~inside, float(coarse.min())), inside, covering, starts)


def _strided(scan: Geometry) -> Geometry:
    """Return the grid of the voxels among which the body is looked for."""
    steps = np.array(body_steps(scan.shape)[::-1])
    affine = scan.affine.copy()
    affine[:3, :3] *= steps
    return Geometry(tuple(-(-np.array(scan.size) // steps)), affine)


def _thickened(scan: Geometry, grid: GridSpec) -> Geometry:
    """Extend the grid of a scan that is thinner than a voxel of the network's grid.

    A single slice, for example, could lie between the middles of two voxels and be missed. Beyond
    the scan its outer slices count.
    """
    # Voxels of the scan that a network voxel spans along each of the scan's axes.
    spanned = np.abs(scan.inverse[:3, :3] @ grid.directions_over(scan)) @ grid.spacing
    extra = np.ceil((1.01 * spanned - scan.size) / 2).clip(0).astype(int)
    if not extra.any():
        return scan
    return Geometry(tuple(scan.size + 2 * extra), _shifted(scan.affine, tuple(-extra)))


@dataclass(frozen=True, eq=False)
class _RunInput:
    """Input of `_run`, the same on every device.

    Attributes:
        scan: grid that is decided on.
        rule: by which windows are normalised.
        seconds: to which durations are added.
    """

    prepared: _Prepared
    scan: Geometry
    bundle: ModelBundle
    rule: IntensityRule
    progress: ProgressCallback
    seconds: dict[str, float] = field(default_factory=dict)


def _run_within_memory(run_input: _RunInput, device: torch.device, messages: list[str]) -> Decision:
    """Run on a device; if memory runs out, with smaller windows, then on the CPU.

    Raises:
        DeviceError: too little memory even on the CPU.
    """
    whole = run_input.bundle.description.grid.size
    divisors = run_input.bundle.network.divisor
    half = tuple(math.ceil(n / 2 / d) * d for n, d in zip(whole, divisors, strict=True))
    places = [(device, whole), (device, half), (torch.device("cpu"), whole)]
    for number, (place, tile) in enumerate(places[: 2 if device.type == "cpu" else 3]):
        if number:
            windows = "whole windows" if tile == whole else f"windows of {_times(tile)} voxels"
            messages.append(f"Memory ran out; went on with {windows} on {place}.")
        try:
            return _run(run_input, place, tile)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out here the error is gone, and with it its hold on the tensors of the attempt.
        torch.cuda.empty_cache()
    raise DeviceError(f"Memory ran out on {place} too; free some, or crop the scan and try again.")


def _mirrored_slices(
    least_certain: dict[int, list[tuple[int, float]]], slices: int
) -> dict[int, list[tuple[int, float]]]:
    """Count slices from the other end."""
    return {
        label: [(slices - 1 - k, mm) for k, mm in ranked] for label, ranked in least_certain.items()
    }


@torch.inference_mode()
def _run(run_input: _RunInput, device: torch.device, tile: Triple) -> Decision:
    """Run the network and decide on one device.

    Args:
        tile: (I, J, K) voxels of a window that the network gets at a time.
    """
    prepared, bundle, seconds = run_input.prepared, run_input.bundle, run_input.seconds
    size, starts = bundle.description.grid.size, prepared.starts
    image = prepared.image.to(device)
    network = bundle.unet().to(device, memory_format=torch.channels_last_3d)

    def predict(start: Triple) -> torch.Tensor:
        window = image[window_slices(start, size)]
        window = intensity.normalise(window[None, None], run_input.rule)
        # In fp32 on every device: bfloat16 moves an organ's outline by up to 1% of its voxels and
        # may cut a bridge between two pieces, so that processors would disagree (BENCHMARKS.md).
        if tile == size:
            return network.probabilities(window)
        return blend(
            lambda corner: network.probabilities(window[:, :, *window_slices(corner, tile)]),
            size,
            tile,
            window_starts(size, tile, OVERLAP),
        )

    with _timed(seconds, "network"):
        probabilities = blend(
            predict,
            prepared.grid.size,
            size,
            starts,
            lambda done: run_input.progress("network", 0.1 + 0.8 * done / len(starts)),
        )
        if not math.isfinite(probabilities.sum()):  # isfinite of each would take as much again
            raise BundleError(
                f"The output of {bundle.description.name} for this scan is not finite; take "
                "another model, and check the scan's intensities."
            )
    if prepared.air is not None:
        names = bundle.description.airless
        airless = [label.value for label in bundle.description.labels if label.name in names]
        without_air(probabilities, prepared.air.to(device), airless)
    with _timed(seconds, "resample"):
        # Beyond the scan the network got filling, so its probabilities there hardly count.
        weight = torch.where(prepared.inside, 1.0, BEYOND).to(device)
        kept = LabelProbabilities.of(probabilities, weight, prepared.grid, run_input.scan)
        del probabilities  # of many labels several times what is kept
        return decide(
            kept,
            run_input.scan,
            lambda done: run_input.progress("resample", 0.9 + 0.1 * done),
        )


def _shifted(matrix: np.ndarray, start: Triple) -> np.ndarray:
    """Adapt an index map (4x4) to indices that count from `start`."""
    shifted = matrix.copy()
    shifted[:3, 3] += matrix[:3, :3] @ start
    return shifted


def _times(size: Triple) -> str:
    return " x ".join(map(str, size))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
