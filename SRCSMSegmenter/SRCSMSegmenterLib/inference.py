# SPDX-License-Identifier: Apache-2.0
"""Segment a scan with a trained network (Thaler et al. 2026).

The scan's intensities are scaled by the rule of its own modality or, with source matching, given
the source's distribution; smoothed on the scan's own grid; and sampled by windows where training
drew them. The windows' probabilities are averaged on one grid of the network's spacing and then
interpolated linearly onto the scan's grid, where the likeliest label wins.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from . import intensity
from .components import keep_largest_component
from .decision import Decision, decide
from .devices import out_of_memory, resolve_device
from .errors import Cancelled, DeviceError
from .field_of_view import (
    body_steps,
    covering_grid,
    sampled_body_extent,
    scan_extent,
    window_starts,
)
from .geometry import Geometry, GridSpec, Volume
from .intensity import IntensityRule
from .modality import CT_BELOW, guess_modality
from .models.bundle import ModelBundle
from .network import UNet
from .resampling import index_map, points
from .separable import sample_smoothed
from .source_matching import matched_voxels

BEYOND = 1e-3
"""Weight of network voxels whose middle lies beyond the scan; not 0, as a scan may have no other
nearby."""

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the network makes of a scan; arrays are (K, J, I) on the scan's own grid.

    Attributes:
        labels: uint8 label map.
        confidence: float16, the winning label's probability, and one minus that where a smaller
            component was called background; 0 where no window reached, which is background.
        probabilities: float16 (classes, K, J, I) where they were asked for.
        least_certain: per label value, (slice k, uncertainty), the least certain slice first, of
            all slices where the label is plausible. The uncertainty is the area expected to be
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
    target_rule: IntensityRule | None = None,
    source_matching: bool = True,
    device: str | torch.device = "auto",
    overlap: float = 0.5,
    keep_largest: bool = True,
    keep_probabilities: bool = False,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Segmentation:
    """Segment a scan of any modality, spacing, orientation and size.

    A left-handed scan is looked at mirrored along K, as Slicer mirrors it on reading, so that a
    file gets the same labels here as there, voxel for voxel. The network computes in fp32 whatever
    the device, so that processors and GPUs agree.

    Args:
        volume: raw intensities.
        modality: "CT" or "MR"; None guesses (`guess_modality`) and says so in the messages.
        target_rule: how this scan is scaled, modality included; None takes the bundle's rule with
            the scan's modality.
        source_matching: match the scan onto the bundle's source histogram. Without, the network
            sees the scan normalised by the rule of its own modality.
        device: see `resolve_device`.
        overlap: share of a window that its neighbours cover too, where one does not suffice.
        keep_largest: keep the largest connected piece of every label, sure voxels weighing
            more, and call the rest background (`smaller_components`), for organs that are one
            piece; the probabilities stay what they are.
        keep_probabilities: return them; two bytes per class and voxel.
        progress: called with the stage and the fraction of the whole that is done. It starts
            anew where memory ran out.
        cancelled: asked between two windows.

    Raises:
        VolumeError: NaN or infinite voxels, or an MR volume without a positive maximum.
        SourceMatchingError: too few distinct intensities; run without source matching.
        DeviceError: unknown or absent device, or too little memory even on the CPU.
        Cancelled: `cancelled` said so.
    """

    def step(stage: str, fraction: float) -> None:
        if cancelled():
            raise Cancelled("The segmentation was cancelled; nothing was written.")
        progress(stage, fraction)

    device = resolve_device(str(device))
    stored = volume.geometry
    if stored.left_handed:
        volume = Volume(volume.array[::-1], stored.mirrored())
    messages: list[str] = []
    seconds: dict[str, float] = {}
    step("prepare", 0.0)
    with _timed(seconds, "prepare"):
        if target_rule is None:
            if modality is None:
                modality = guess_modality(volume.array)
                messages.append(
                    f"Taken for {modality}: the minimum is {volume.array.min():g}, and only CT "
                    f"reaches below {CT_BELOW}."
                )
            target_rule = replace(bundle.description.rule, modality=modality)
        if source_matching:
            rule = bundle.description.rule
            array, convert = matched_voxels(volume.array, target_rule, bundle.histogram)
        else:
            rule = target_rule
            array, convert = intensity.scaled_voxels(volume.array, rule)
        prepared = _prepare(array, convert, volume.geometry, bundle, overlap)
        del array, convert

    attempt = partial(
        _run,
        prepared,
        volume.geometry,
        bundle,
        rule,
        overlap=overlap,
        keep_probabilities=keep_probabilities,
        step=step,
        seconds=seconds,
    )
    whole = bundle.description.grid.size
    divisors = bundle.network.divisor
    half = tuple(math.ceil(n / 2 / d) * d for n, d in zip(whole, divisors, strict=True))
    places = [(device, whole), (device, half), (torch.device("cpu"), whole)]
    for number, (place, tile) in enumerate(places[: 2 if device.type == "cpu" else 3]):
        if number:
            windows = "whole windows" if tile == whole else f"windows of {_times(tile)} voxels"
            messages.append(f"Memory ran out; went on with {windows} on {place}.")
        try:
            decision = attempt(place, tile)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Out here the error is gone, and with it its hold on the tensors of the attempt.
        torch.cuda.empty_cache()
    else:
        raise DeviceError(
            f"Memory ran out on {place} too; free some, or crop the scan and try again."
        )
    if keep_largest:
        with _timed(seconds, "resample"):
            counts = keep_largest_component(decision.labels, decision.confidence)
        if counts.any():
            millilitres = volume.geometry.voxel_ml
            left_out = ", ".join(
                f"{counts[label.value] * millilitres:.1f} ml of {label.name.replace('_', ' ')}"
                for label in bundle.description.labels
                if label.value < len(counts) and counts[label.value]
            )
            messages.append(f"Smaller pieces apart from the largest were left out: {left_out}.")
    progress("resample", 1.0)
    found = Segmentation(
        Volume(decision.labels, volume.geometry),
        decision.confidence,
        decision.probabilities,
        decision.least_certain,
        messages,
        seconds,
    )
    return _mirrored(found, stored) if stored.left_handed else found


def _mirrored(found: Segmentation, stored: Geometry) -> Segmentation:
    """The same on the mirrored grid."""
    kept, last = found.probabilities, stored.size[2] - 1
    return replace(
        found,
        labels=Volume(found.labels.array[::-1], stored),
        confidence=found.confidence[::-1],
        probabilities=None if kept is None else kept[:, ::-1],
        least_certain={
            label: [(last - k, mm) for k, mm in slices]
            for label, slices in found.least_certain.items()
        },
    )


@torch.inference_mode()
def _run(
    prepared: "_Prepared",
    scan: Geometry,
    bundle: ModelBundle,
    rule: IntensityRule,
    device: torch.device,
    tile: Triple,
    *,
    overlap: float,
    keep_probabilities: bool,
    step: Callable[[str, float], None],
    seconds: dict[str, float],
) -> Decision:
    """Run the network and decide on one device; `tile` is the part of a window seen at a time."""
    grid = bundle.description.grid
    image = prepared.image.to(device)
    network = bundle.unet().to(device, memory_format=torch.channels_last_3d)
    starts = prepared.starts

    def predict(start: Triple) -> torch.Tensor:
        window = image[_part(start, grid.size)]
        window = intensity.normalise(window[None, None], rule)
        if tile == grid.size:
            return _probabilities(network, window)
        return _blend(
            lambda corner: _probabilities(network, window[:, :, *_part(corner, tile)]),
            grid.size,
            tile,
            window_starts(grid.size, tile, overlap),
        )

    with _timed(seconds, "network"):
        probabilities = _blend(
            predict,
            prepared.grid.size,
            grid.size,
            starts,
            lambda done: step("network", 0.1 + 0.8 * done / len(starts)),
        )
    with _timed(seconds, "resample"):
        # What the network says of places beyond the scan, where it saw filling, hardly counts.
        weight = torch.where(prepared.inside, 1.0, BEYOND).to(device)
        return decide(
            probabilities,
            weight,
            prepared.grid,
            scan,
            keep_probabilities,
            lambda done: step("resample", 0.9 + 0.1 * done),
        )


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A scan on a grid of the network's spacing that covers it.

    Attributes:
        image: (K, J, I) float32, scaled, smoothed and resampled.
        inside: (K, J, I) bool, whether a voxel's middle lies within the scan.
        starts: first index (i, j, k) of each window.
    """

    image: torch.Tensor
    inside: torch.Tensor
    grid: Geometry
    starts: list[Triple]


def _prepare(
    array: np.ndarray,
    convert: Callable[[np.ndarray], np.ndarray],
    scan: Geometry,
    bundle: ModelBundle,
    overlap: float,
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
    covering, starts = covering_grid(body, scan_extent(seen, grid), grid, overlap)
    image = sample_smoothed(array, convert, scan, sigma, covering)
    where = points(index_map(covering, seen), covering.size)
    last = torch.tensor(seen.size) - 0.5
    inside = ((where > -0.5) & (where < last)).all(-1)
    return _Prepared(image.masked_fill_(~inside, float(coarse.min())), inside, covering, starts)


def _strided(scan: Geometry) -> Geometry:
    """The grid of the voxels among which the body is looked for."""
    steps = np.array(body_steps(scan.shape)[::-1])
    affine = scan.affine.copy()
    affine[:3, :3] *= steps
    return Geometry(tuple(-(-np.array(scan.size) // steps)), affine)


def _thickened(scan: Geometry, grid: GridSpec) -> Geometry:
    """Extend a scan, such as a single slice, that is thinner than a voxel of the network's grid
    and would slip through between the voxels' middles; its outer slices count beyond it."""
    # Voxels of the scan that a network voxel spans along each of the scan's axes.
    spanned = np.abs(scan.inverse[:3, :3] @ grid.directions_over(scan)) @ grid.spacing
    extra = np.ceil((1.01 * spanned - scan.size) / 2).clip(0).astype(int)
    if not extra.any():
        return scan
    return Geometry(tuple(scan.size + 2 * extra), _shifted(scan.affine, tuple(-extra)))


def _probabilities(network: UNet, window: torch.Tensor) -> torch.Tensor:
    """(1, 1, K, J, I) network input -> (classes, K, J, I) float32."""
    # In fp32 on every device: bfloat16 moves the outline of an organ by up to 1% of its voxels and
    # may cut a bridge between two pieces, so that processors would disagree (BENCHMARKS.md).
    return network(window)[0].softmax(0)


def _blend(
    predict: Callable[[Triple], torch.Tensor],
    total: Triple,
    size: Triple,
    starts: list[Triple],
    step: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Average what overlapping windows predict, each weighted by a Gaussian around its middle.

    Args:
        predict: first index (i, j, k) of a window -> (classes, K, J, I).
        total, size: of the whole and of a window, (I, J, K).
        starts: the windows; together they cover the whole.
        step: called with the number of windows done.

    Returns:
        (classes, K, J, I) on the whole.
    """
    for done, start in enumerate(starts):
        step(done)
        found = predict(start)
        if done == 0:
            weight = _gaussian(size).to(found.device)
            summed = found.new_zeros(len(found), *total[::-1])
            weights = found.new_zeros(total[::-1])
        part = _part(start, size)
        summed[:, *part].addcmul_(found, weight)
        weights[part] += weight
        if found.device.type == "cuda":
            torch.cuda.synchronize(found.device)  # or progress and cancelling run ahead of it
    return summed.div_(weights)


def _gaussian(size: Triple) -> torch.Tensor:
    """(K, J, I) float32 around the middle, sigma an eighth of the window."""
    i, j, k = (torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size)
    return k[:, None, None] * j[:, None] * i


def _shifted(matrix: np.ndarray, start: Triple) -> np.ndarray:
    """An index map for indices that count from `start`."""
    shifted = matrix.copy()
    shifted[:3, 3] += matrix[:3, :3] @ start
    return shifted


def _part(start: Triple, size: Triple) -> tuple[slice, slice, slice]:
    """Slices (K, J, I) of a window from its first index and size (I, J, K)."""
    i, j, k = (slice(first, first + n) for first, n in zip(start, size, strict=True))
    return k, j, i


def _times(size: Triple) -> str:
    return " x ".join(map(str, size))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
