# SPDX-License-Identifier: Apache-2.0
"""Measures of restyled slices: how far the style moved, and whether the anatomy stayed."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_gradient_magnitude
from scipy.stats import rankdata

from SRCSMSegmenterLib.components import dice
from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle

from .config import CheckConfig
from .slices import Slice, SliceSet, read_manifest, read_picture

SMALLEST = 20
"""Pixels from which on an organ is judged, and edge pixels from which on an outline is."""


@dataclass(frozen=True)
class Numbers:
    """The measures of a restyled slice.

    Attributes:
        name, source, style: of the slice.
        organs: organ -> `histogram_distance` to the source slice within it.
        picture: the same over the whole picture.
        between: other style of the same source slice -> mean of the organs' distances to it.
        edges: `boundary_agreement` of picture and mask; nan where the mask has no outline.
        source_edges: that of the source slice.
        dice: mean Dice over the organs of the source-trained network on this picture, nan without.
    """

    name: str
    source: str
    style: str
    organs: dict[str, float] = field(default_factory=dict)
    picture: float = math.nan
    between: dict[str, float] = field(default_factory=dict)
    edges: float = math.nan
    source_edges: float = math.nan
    dice: float = math.nan

    @property
    def moved(self) -> float:
        """The distance by which the style moved: the mean over the organs, NaN without any."""
        return mean(self.organs.values())

    def reason(self, config: CheckConfig) -> str:
        """Say why the slice is set aside; "" if it is kept."""
        if not self.organs or math.isnan(self.edges):
            return "no organ to judge it by"
        if self.moved < config.moved:
            return f"style unchanged: moved {self.moved:.3f} of {config.moved:g}"
        if self.edges < config.edges:
            return f"anatomy not kept: edges {self.edges:.2f} of {config.edges:g}"
        if self.dice < config.dice:
            return f"anatomy not kept: Dice {self.dice:.2f} of {config.dice:g}"
        return ""


def measure(
    source: SliceSet, original: Slice, restyled: SliceSet, styles: Sequence[Slice]
) -> list[Numbers]:
    """Measure all restyled slices of one source slice, without the network's Dice.

    Raises:
        DatasetError: the mask holds labels that the manifest does not name.
    """
    mask = read_picture(source, original.mask)
    if unknown := sorted(set(np.unique(mask).tolist()) - {0, *source.labels.values()}):
        raise DatasetError(
            f"{source.folder / original.mask} holds the labels {unknown}, which its manifest does "
            "not name; prepare the slices anew."
        )
    before = read_picture(source, original.image)
    pictures = {s.name: read_picture(restyled, s.image) for s in styles}
    organs = {name: mask == value for name, value in source.labels.items()}
    organs = {name: where for name, where in organs.items() if where.sum() >= SMALLEST}
    source_edges = boundary_agreement(before, mask)

    def distances(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        return {name: histogram_distance(a[w], b[w]) for name, w in organs.items()}

    return [
        Numbers(
            name=s.name,
            source=original.name,
            style=s.style,
            organs=distances(before, pictures[s.name]),
            picture=histogram_distance(before, pictures[s.name]),
            between={
                other.style: mean(distances(pictures[s.name], pictures[other.name]).values())
                for other in styles
                if other.style != s.style
            },
            edges=boundary_agreement(pictures[s.name], mask),
            source_edges=source_edges,
        )
        for s in styles
    ]


def histogram_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the earth mover's distance of two sets of grey values, a share of their range.

    Args:
        first, second: uint8 of any shape.
    """
    cumulative = [
        np.bincount(values.ravel(), minlength=256).cumsum() / values.size
        for values in (first, second)
    ]
    return float(np.abs(cumulative[0] - cumulative[1])[:-1].sum() / 255)


def boundary_agreement(picture: np.ndarray, mask: np.ndarray) -> float:
    """Measure how well the mask's outlines lie on edges of the picture.

    The measure is the chance that the picture's gradient is larger at a pixel of an outline than at
    one of the band around the outlines: 1 is perfect, 0.5 chance. Blur and band scale with the
    picture: in one of 96 pixels the gradient has a sigma of 0.7 pixels, and the band reaches from
    1.5 to 5 pixels.

    Args:
        picture: (rows, columns) uint8.
        mask: (rows, columns) labels.

    Returns:
        NaN if there is too little outline to tell.
    """
    unit = len(picture) / 96
    outline = np.zeros(mask.shape, bool)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    outline[1:] |= down
    outline[:-1] |= down
    outline[:, 1:] |= right
    outline[:, :-1] |= right
    away = distance_transform_edt(~outline) if outline.any() else np.full(mask.shape, np.inf)
    band = (away > 1.5 * unit) & (away <= 5 * unit)
    n, m = int(outline.sum()), int(band.sum())
    if min(n, m) < SMALLEST:
        return math.nan
    gradient = gaussian_gradient_magnitude(picture.astype(np.float32), 0.7 * unit)
    ranks = rankdata(np.concatenate([gradient[outline], gradient[band]]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def within_source(source: SliceSet, pairs: int = 50) -> float:
    """Measure the median distance of one organ in two source slices of different cases."""
    slices = source.kept()
    rng = np.random.default_rng(0)
    distances = []
    for n in rng.permutation(len(slices))[:pairs]:
        others = [
            s for s in slices if s.case != slices[n].case and s.pixels.keys() & slices[n].pixels
        ]
        if not others:
            continue
        both = (slices[n], others[rng.integers(len(others))])
        pictures = [read_picture(source, s.image) for s in both]
        masks = [read_picture(source, s.mask) for s in both]
        for value in source.labels.values():
            parts = [p[m == value] for p, m in zip(pictures, masks, strict=True)]
            if min(map(len, parts)) >= SMALLEST:
                distances.append(histogram_distance(*parts))
    return median(distances)


def network_dice(restyled: SliceSet, s: Slice, network: ModelBundle, device: str) -> float:
    """Measure the network's mean Dice over the organs on a scan made of one picture.

    The picture is repeated to fill the network's window, without its tilt, and its grey values
    are what `style prepare` made them from.
    """
    picture, mask = read_picture(restyled, s.image), read_picture(restyled, s.mask)
    source = read_manifest(restyled.folder / restyled.source)
    lower, upper = source.settings["window"] if source.modality == "CT" else (0.0, 255.0)
    affine = np.array(s.affine).reshape(4, 4)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    direction = np.rint(affine[:3, :3] / lengths)
    depth = int(np.ceil(network.description.grid.extent.max() / lengths[2])) | 1
    straight = np.eye(4)
    straight[:3, :3] = direction * lengths
    values = np.repeat(picture[None] * np.float32((upper - lower) / 255) + lower, depth, axis=0)
    scan = Volume(values.astype(np.float32), Geometry(values.shape[::-1], straight))
    labels = segment(
        scan,
        network,
        modality=source.modality,
        source_matching=False,
        device=device,
        keep_largest=False,
    ).labels.array[depth // 2]
    scores = []
    for value in restyled.labels.values():
        true, predicted = mask == value, labels == value
        if true.sum() >= SMALLEST:
            scores.append(dice(true, predicted, empty=np.nan))
    return mean(scores)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def median(values: Iterable[float]) -> float:
    there = [v for v in values if not math.isnan(v)]
    return statistics.median(there) if there else math.nan
