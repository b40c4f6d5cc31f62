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
from torch.nn import functional as F

from . import intensity
from .components import keep_largest_component
from .devices import out_of_memory, resolve_device
from .errors import Cancelled, DeviceError
from .field_of_view import body_extent, covering_grid, scan_extent, window_starts
from .geometry import Geometry, GridSpec, Volume
from .intensity import IntensityRule
from .modality import CT_BELOW, guess_modality
from .models.bundle import ModelBundle
from .network import UNet
from .resampling import index_map, look_up, points, resample, smooth_mm
from .source_matching import match_to_source

PLAUSIBLE = 0.1
"""Probability from which a voxel may be the label's; counted in `Segmentation.least_certain`."""

BEYOND = 1e-3
"""Weight of network voxels whose middle lies beyond the scan; not 0, as a scan may have no other
nearby."""

SLAB = 8
"""Slices of the scan decided at a time."""

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
            scaled = match_to_source(volume.array, target_rule, bundle.histogram)
        else:
            rule = target_rule
            scaled = intensity.scale(volume.array, rule)
        image = torch.from_numpy(scaled.astype(np.float32))
        del scaled

    attempt = partial(
        _run,
        image,
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
            labels, confidence, probabilities, least_certain = attempt(place, tile)
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
            counts = keep_largest_component(labels, confidence)
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
        Volume(labels, volume.geometry),
        confidence,
        probabilities,
        least_certain,
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
    image: torch.Tensor,
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[int, list[tuple[int, float]]]]:
    """All from smoothing on, on one device; `tile` is the part of a window seen at a time."""
    grid = bundle.description.grid
    with _timed(seconds, "prepare"):
        smoothed = smooth_mm(image.to(device), scan.spacing, bundle.description.smoothing)
        smoothed, seen = _thickened(smoothed, scan, grid)
        outside = float(smoothed.min())
        body = body_extent(smoothed.cpu().numpy(), seen, grid)
        covering, starts = covering_grid(body, scan_extent(seen, grid), grid, overlap)
        network = bundle.unet().to(device, memory_format=torch.channels_last_3d)

    def predict(start: Triple) -> torch.Tensor:
        matrix = _shifted(index_map(covering, seen), start)
        window = resample(smoothed[None], matrix, grid.size, outside)
        window = intensity.normalise(window[None], rule)
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
            covering.size,
            grid.size,
            starts,
            lambda done: step("network", 0.1 + 0.8 * done / len(starts)),
        )
    with _timed(seconds, "resample"):
        # What the network says of places beyond the scan, where it saw filling, hardly counts.
        where = points(index_map(covering, seen), covering.size, device)
        weight = torch.where(look_up(where, seen.shape).inside, 1.0, BEYOND)
        return _onto_scan(probabilities, weight, covering, scan, keep_probabilities, step)


def _thickened(
    image: torch.Tensor, scan: Geometry, grid: GridSpec
) -> tuple[torch.Tensor, Geometry]:
    """Repeat the outer slices of a scan, such as a single slice, that is thinner than a voxel of
    the network's grid and would slip through between the voxels' middles."""
    # Voxels of the scan that a network voxel spans along each of the scan's axes.
    spanned = np.abs(scan.inverse[:3, :3] @ grid.directions_over(scan)) @ grid.spacing
    extra = np.ceil((1.01 * spanned - scan.size) / 2).clip(0).astype(int)
    if not extra.any():
        return image, scan
    image = F.pad(image[None, None], extra.repeat(2).tolist(), mode="replicate")[0, 0]
    return image, Geometry(image.shape[::-1], _shifted(scan.affine, tuple(-extra)))


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


def _onto_scan(
    probabilities: torch.Tensor,
    weight: torch.Tensor,
    covering: Geometry,
    scan: Geometry,
    keep: bool,
    step: Callable[[str, float], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[int, list[tuple[int, float]]]]:
    """Interpolate (classes, K, J, I), each voxel with its weight (K, J, I), onto the scan's grid
    and decide, slab by slab along K."""
    classes, slices = len(probabilities), scan.size[2]
    labels = np.empty(scan.shape, np.uint8)
    confidence = np.empty(scan.shape, np.float16)
    kept = np.empty((classes, *scan.shape), np.float16) if keep else None
    wrong, expected = np.zeros((2, classes, slices))
    matrix = index_map(scan, covering)
    probabilities = probabilities * weight
    for k in range(0, slices, SLAB):
        step("resample", 0.9 + 0.1 * k / slices)
        slab = slice(k, min(k + SLAB, slices))
        size = (*scan.size[:2], slab.stop - k)
        part = _shifted(matrix, (0, 0, k))
        found = resample(probabilities, part, size)
        found = found / resample(weight[None], part, size, outside=1.0)
        best, winner = _largest(found)
        labels[slab] = winner.cpu().numpy()
        confidence[slab] = best.half().cpu().numpy()
        if kept is not None:
            kept[:, slab] = found.half().cpu().numpy()
        plausible = found.where(found >= PLAUSIBLE, 0)
        expected[:, slab] = plausible.sum((2, 3)).cpu().numpy()
        wrong[:, slab] = plausible.minimum(1 - plausible).sum((2, 3)).cpu().numpy()
    area = np.linalg.norm(np.cross(scan.affine[:3, 0], scan.affine[:3, 1]))
    least_certain = {
        label: _ranked(wrong[label] * area, expected[label] * area) for label in range(1, classes)
    }
    return labels, confidence, kept, least_certain


def _largest(found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of (classes, K, J, I) and its index as uint8, the lowest where some are equal."""
    # A running maximum: reducing the leading axis is ten times slower on a CPU.
    best, winner = found[0].clone(), torch.zeros_like(found[0], dtype=torch.uint8)
    for label, probability in enumerate(found[1:], start=1):
        winner.masked_fill_(probability > best, label)
        torch.maximum(best, probability, out=best)
    return best, winner


def _ranked(wrong: np.ndarray, expected: np.ndarray) -> list[tuple[int, float]]:
    there = np.flatnonzero(expected)
    uncertainty = wrong[there] / np.sqrt(expected[there])
    order = np.argsort(-uncertainty, kind="stable")
    return [(int(there[n]), float(uncertainty[n])) for n in order]


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
