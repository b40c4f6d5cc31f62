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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from . import intensity
from .components import keep_largest_component
from .devices import autocast, out_of_memory, resolve_device
from .errors import DeviceError
from .field_of_view import body_extent, covering_grid, scan_extent, window_starts
from .geometry import Geometry, GridSpec, Volume
from .intensity import IntensityRule
from .modality import CT_BELOW, guess_modality
from .models.bundle import ModelBundle
from .network import UNet
from .resampling import index_map, look_up, points, resample, smooth_mm
from .source_matching import match_to_source
from .window_blending import Triple, blend, window_slices

OVERLAP = 0.5
"""Share of a window that its neighbours cover too, if one window does not suffice."""

PLAUSIBLE = 0.1
"""Probability from which a voxel may be the label's; counted in `Segmentation.least_certain`."""

BEYOND = 1e-3
"""Weight of network voxels whose middle lies beyond the scan; not 0, as a scan may have no other
nearby."""

SLAB = 8
"""Slices of the scan decided at a time."""

ProgressCallback = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The labels of a scan and how certain they are; arrays are (K, J, I) on the scan's own grid.

    Attributes:
        labels: uint8 label map.
        confidence: float16, the winning label's probability, or one minus that if a smaller
            component was relabelled as background; 0 beyond all windows, which is background.
        probabilities: float16 (classes, K, J, I) if they were asked for, else None.
        least_certain: per label, (slice k, uncertainty), the least certain slice first, of all
            slices in which the label is plausible. The uncertainty is the area expected to be
            labelled wrongly, sum of min(p, 1 - p) over the slice, divided by the square root of
            the label's expected area, sum of p: about the width in mm of its uncertain rim, so
            large and small cross-sections compare, and a faint, missed organ comes first.
        messages: what the user should know, a sentence each.
        seconds: duration per stage: "prepare", "network", "resample".
    """

    labels: Volume
    confidence: np.ndarray
    probabilities: np.ndarray | None
    least_certain: dict[int, list[tuple[int, float]]]
    messages: list[str]
    seconds: dict[str, float]


def segment(
    volume: Volume,
    bundle: ModelBundle,
    *,
    modality: str | None = None,
    source_matching: bool = True,
    device: str | torch.device = "auto",
    keep_largest: bool = True,
    keep_probabilities: bool = False,
    progress: ProgressCallback = lambda stage, fraction: None,
) -> Segmentation:
    """Segment a scan of any modality, spacing, orientation and size.

    A left-handed scan is mirrored along K for the network, as Slicer mirrors it on reading, so that
    a file gets the same labels here as there, voxel for voxel.

    Args:
        volume: raw intensities, (K, J, I).
        modality: "CT" or "MR"; None guesses (`guess_modality`) and says so in the messages.
        source_matching: match the scan onto the bundle's source histogram. Without, the network
            gets the scan normalised by the rule of its own modality.
        device: see `resolve_device`.
        keep_largest: keep only the largest connected piece of every label, weighted by confidence,
            and relabel the rest as background (`keep_largest_component`); the probabilities do not
            change. Switch it off for labels that are several pieces.
        keep_probabilities: return them; two bytes per class and voxel.
        progress: called with the stage and the fraction of the whole that is done, once per window.
            It starts again if memory ran out. An error it raises, such as `Cancelled`, stops the
            segmentation.

    Raises:
        VolumeError: NaN or infinite voxels, or an MR volume without a positive maximum.
        SourceMatchingError: too few distinct intensities; run without source matching.
        DeviceError: unknown or absent device, or too little memory even on the CPU.
    """
    device = resolve_device(str(device))
    stored = volume.geometry
    if stored.left_handed:
        volume = Volume(volume.array[::-1], stored.mirrored())
    seconds: dict[str, float] = {}
    progress("prepare", 0.0)
    with _timed(seconds, "prepare"):
        image, rule, messages = _network_intensities(volume, bundle, modality, source_matching)
    run_input = _RunInput(
        image, volume.geometry, bundle, rule, keep_probabilities, progress, seconds
    )
    decision = _run_within_memory(run_input, device, messages)
    if keep_largest:
        with _timed(seconds, "resample"):
            counts = keep_largest_component(decision.labels, decision.confidence)
        messages += _removed_pieces(counts, bundle, volume.geometry)
    progress("resample", 1.0)
    result = Segmentation(
        Volume(decision.labels, volume.geometry),
        decision.confidence,
        decision.probabilities,
        decision.least_certain,
        messages,
        seconds,
    )
    return _mirrored(result, stored) if stored.left_handed else result


def _network_intensities(
    volume: Volume, bundle: ModelBundle, modality: str | None, source_matching: bool
) -> tuple[torch.Tensor, IntensityRule, list[str]]:
    """Scale a scan, or match it to the source.

    Returns:
        (K, J, I) float32 on the CPU, the rule by which to normalise it, and messages.
    """
    messages = []
    if modality is None:
        modality = guess_modality(volume.array)
        messages.append(
            f"Taken for {modality}: the minimum is {volume.array.min():g}, and only CT reaches "
            f"below {CT_BELOW}."
        )
    own_rule = replace(bundle.description.rule, modality=modality)
    if source_matching:
        rule = bundle.description.rule
        scaled = match_to_source(volume.array, own_rule, bundle.histogram)
    else:
        rule = own_rule
        scaled = intensity.scale(volume.array, rule)
    return torch.from_numpy(scaled.astype(np.float32)), rule, messages


@dataclass(frozen=True, eq=False)
class _RunInput:
    """Input of `_run`, the same on every device.

    Attributes:
        image: (K, J, I) float32, scaled or matched.
        scan: grid of `image`.
        rule: by which windows are normalised.
        seconds: to which durations are added.
    """

    image: torch.Tensor
    scan: Geometry
    bundle: ModelBundle
    rule: IntensityRule
    keep_probabilities: bool
    progress: ProgressCallback
    seconds: dict[str, float] = field(default_factory=dict)


class _Decision(NamedTuple):
    """Result of `_run`; see `Segmentation`."""

    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    least_certain: dict[int, list[tuple[int, float]]]


def _run_within_memory(
    run_input: _RunInput, device: torch.device, messages: list[str]
) -> _Decision:
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


def _removed_pieces(counts: np.ndarray, bundle: ModelBundle, scan: Geometry) -> list[str]:
    """Write the message about pieces that were removed, if there were any.

    Args:
        counts: (labels,) removed voxels by label.
    """
    removed = ", ".join(
        f"{counts[label.value] * scan.voxel_ml:.1f} ml of {label.name.replace('_', ' ')}"
        for label in bundle.description.labels
        if label.value < len(counts) and counts[label.value]
    )
    return [f"Smaller pieces apart from the largest were left out: {removed}."] if removed else []


def _mirrored(result: Segmentation, stored: Geometry) -> Segmentation:
    """Mirror a result to the grid on which the scan is stored."""
    probabilities, last = result.probabilities, stored.size[2] - 1
    return replace(
        result,
        labels=Volume(result.labels.array[::-1], stored),
        confidence=result.confidence[::-1],
        probabilities=None if probabilities is None else probabilities[:, ::-1],
        least_certain={
            label: [(last - k, mm) for k, mm in slices]
            for label, slices in result.least_certain.items()
        },
    )


@torch.inference_mode()
def _run(run_input: _RunInput, device: torch.device, tile: Triple) -> _Decision:
    """Do all from smoothing on, on one device.

    Args:
        tile: (I, J, K) voxels of a window that the network gets at a time.
    """
    scan, bundle, seconds = run_input.scan, run_input.bundle, run_input.seconds
    grid = bundle.description.grid
    with _timed(seconds, "prepare"):
        smoothed = smooth_mm(run_input.image.to(device), scan.spacing, bundle.description.smoothing)
        smoothed, seen = _thickened(smoothed, scan, grid)
        outside = float(smoothed.min())
        body = body_extent(smoothed.cpu().numpy(), seen, grid)
        covering, starts = covering_grid(body, scan_extent(seen, grid), grid, OVERLAP)
        network = bundle.unet().to(device, memory_format=torch.channels_last_3d)

    def predict(start: Triple) -> torch.Tensor:
        matrix = _shifted(index_map(covering, seen), start)
        window = resample(smoothed[None], matrix, grid.size, outside)
        window = intensity.normalise(window[None], run_input.rule)
        if tile == grid.size:
            return _probabilities(network, window)
        return blend(
            lambda corner: _probabilities(network, window[:, :, *window_slices(corner, tile)]),
            grid.size,
            tile,
            window_starts(grid.size, tile, OVERLAP),
        )

    with _timed(seconds, "network"):
        probabilities = blend(
            predict,
            covering.size,
            grid.size,
            starts,
            lambda done: run_input.progress("network", 0.1 + 0.8 * done / len(starts)),
        )
    with _timed(seconds, "resample"):
        # Beyond the scan the network got filling, so its probabilities there hardly count.
        positions = points(index_map(covering, seen), covering.size, device)
        weight = torch.where(look_up(positions, seen.shape).inside, 1.0, BEYOND)
        return _onto_scan(probabilities, weight, covering, run_input)


def _thickened(
    image: torch.Tensor, scan: Geometry, grid: GridSpec
) -> tuple[torch.Tensor, Geometry]:
    """Repeat the outer slices of a scan that is thinner than a voxel of the network's grid.

    A single slice, for example, could lie between the middles of two voxels and be missed.
    """
    # Voxels of the scan that a network voxel spans along each of the scan's axes.
    spanned = np.abs(scan.inverse[:3, :3] @ grid.directions_over(scan)) @ grid.spacing
    extra = np.ceil((1.01 * spanned - scan.size) / 2).clip(0).astype(int)
    if not extra.any():
        return image, scan
    image = F.pad(image[None, None], extra.repeat(2).tolist(), mode="replicate")[0, 0]
    return image, Geometry(image.shape[::-1], _shifted(scan.affine, tuple(-extra)))


def _probabilities(network: UNet, window: torch.Tensor) -> torch.Tensor:
    """Map (1, 1, K, J, I) network input to (classes, K, J, I) float32 probabilities."""
    # oneDNN's bfloat16 convolution of one channel of one slice is wrong (torch 2.15, AMX).
    with autocast(window.device) if window.shape[2] > 1 else nullcontext():
        logits = network(window)
    return logits[0].float().softmax(0)


def _onto_scan(
    probabilities: torch.Tensor,
    weight: torch.Tensor,
    covering: Geometry,
    run_input: _RunInput,
) -> _Decision:
    """Interpolate probabilities onto the scan's grid and decide, slab by slab along K.

    Args:
        probabilities: (classes, K, J, I) on `covering`.
        weight: (K, J, I) of the voxels of `covering`.
    """
    scan, classes, slices = run_input.scan, len(probabilities), run_input.scan.size[2]
    labels = np.empty(scan.shape, np.uint8)
    confidence = np.empty(scan.shape, np.float16)
    kept = np.empty((classes, *scan.shape), np.float16) if run_input.keep_probabilities else None
    wrong, expected = np.zeros((2, classes, slices))
    matrix = index_map(scan, covering)
    probabilities = probabilities * weight
    for k in range(0, slices, SLAB):
        run_input.progress("resample", 0.9 + 0.1 * k / slices)
        slab = slice(k, min(k + SLAB, slices))
        size = (*scan.size[:2], slab.stop - k)
        part = _shifted(matrix, (0, 0, k))
        values = resample(probabilities, part, size)
        values = values / resample(weight[None], part, size, outside=1.0)
        best, winner = _largest(values)
        labels[slab] = winner.cpu().numpy()
        confidence[slab] = best.half().cpu().numpy()
        if kept is not None:
            kept[:, slab] = values.half().cpu().numpy()
        plausible = values.where(values >= PLAUSIBLE, 0)
        expected[:, slab] = plausible.sum((2, 3)).cpu().numpy()
        wrong[:, slab] = plausible.minimum(1 - plausible).sum((2, 3)).cpu().numpy()
    area = np.linalg.norm(np.cross(scan.affine[:3, 0], scan.affine[:3, 1]))
    least_certain = {
        label: _ranked(wrong[label] * area, expected[label] * area) for label in range(1, classes)
    }
    return _Decision(labels, confidence, kept, least_certain)


def _largest(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the largest of (classes, K, J, I) and its index as uint8, the lowest of equal ones."""
    # A running maximum: reducing the leading axis is ten times slower on a CPU.
    best, winner = values[0].clone(), torch.zeros_like(values[0], dtype=torch.uint8)
    for label, probability in enumerate(values[1:], start=1):
        winner.masked_fill_(probability > best, label)
        torch.maximum(best, probability, out=best)
    return best, winner


def _ranked(wrong: np.ndarray, expected: np.ndarray) -> list[tuple[int, float]]:
    """Rank the slices of a label; see `Segmentation.least_certain`.

    Args:
        wrong, expected: (K,) mm², areas expected to be labelled wrongly, and to be the label.
    """
    slices = np.flatnonzero(expected)
    uncertainty = wrong[slices] / np.sqrt(expected[slices])
    order = np.argsort(-uncertainty, kind="stable")
    return [(int(slices[n]), float(uncertainty[n])) for n in order]


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
