# SPDX-License-Identifier: Apache-2.0
"""Positions of organs relative to each other, and the choice of each organ's piece by them.

A network may label a second place as an organ, and be surer of it than of the organ itself: fat of
the flank as spleen, for example. The labels of the training scans tell where a spleen lies as seen
from the liver and the kidneys, in every modality alike.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .blocks import Block, whole_block
from .components import ConfidenceOf, LabelComponents, components
from .errors import BundleError
from .geometry import Geometry
from .runs import Runs
from .terminology import Segment, readable

SCATTER = 15.0
"""Standard deviation in mm, along each axis, of the offsets that the training scans do not show."""

FARTHEST = 5.0
"""Standard deviations from which on an offset counts alike, so that one misplaced organ cannot
outvote the others."""

CANDIDATES = 6
"""Largest components of a label among which its piece is chosen."""

LEAST_SHARE = 0.02
"""Size of a candidate, at least, as a share of the largest component's."""

LEAST_ML = 0.05
"""Smaller pieces are left out without a word: they would be told as 0.0 ml."""


@dataclass(frozen=True)
class Offset:
    """The offset of one organ's centroid from another's, over the training scans.

    Attributes:
        start, end: labels of the two organs; the offset leads from the first to the second.
        mean: (3,) mm along R, A and S.
        covariance: (3, 3) mm², `SCATTER` included.
    """

    start: int
    end: int
    mean: tuple[float, float, float]
    covariance: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        covariance = np.array(self.covariance, float)
        symmetric = covariance.shape == (3, 3) and np.array_equal(covariance, covariance.T)
        if len(self.mean) != 3 or not symmetric or np.linalg.eigvalsh(covariance).min() <= 0:
            raise BundleError(
                f"The offset from label {self.start} to {self.end} needs a mean of three numbers "
                "and a symmetric, positive definite covariance of 3 x 3."
            )


@dataclass(frozen=True, eq=False)
class Kept:
    """The result of keeping one component of every label.

    Attributes:
        left_out: by label, the voxels that were relabelled as background; labels that lost nothing
            are not in it.
        means: mean confidence of what was kept of each label that is there.
        smaller: labels of which a smaller component was kept, because of its position.
    """

    left_out: dict[int, Runs]
    means: dict[int, float]
    smaller: tuple[int, ...] = ()

    def messages(self, labels: Iterable[Segment], voxel_ml: float) -> list[str]:
        """Write which pieces were left out, and of which labels the largest was."""
        names = {label.value: readable(label.name) for label in labels}
        volumes = {
            label: int(runs.lengths.sum()) * voxel_ml
            for label, runs in sorted(self.left_out.items())
        }
        removed = ", ".join(
            f"{volume:.1f} ml of {names[label]}"
            for label, volume in volumes.items()
            if volume >= LEAST_ML
        )
        messages = [f"Pieces apart from the one kept were left out: {removed}."] if removed else []
        if self.smaller:
            organs = ", ".join(names[label] for label in self.smaller)
            messages.append(
                f"Not the largest piece was kept of {organs}, but the one that lies where that "
                "organ does among the others; check it."
            )
        return messages


def keep_likeliest_component(
    labels: np.ndarray, confidence_of: ConfidenceOf, geometry: Geometry, offsets: Sequence[Offset]
) -> Kept:
    """Relabel all components but the likeliest of every label as background, in place.

    Size decides, weighted by confidence, and position relative to the other organs
    (`choose_pieces`). Without offsets the largest component stays.

    Args:
        labels: (K, J, I) integers, 0 is background.
        confidence_of: see `components.components`.
        geometry: grid of the labels.
    """
    found = components(labels, confidence_of)
    if not offsets:
        return _keep(labels, ((one, int(np.argmax(one.sizes))) for one in found))
    found = list(found)
    pieces = [(n, piece) for n, one in enumerate(found) for piece in _candidates(one)]
    if not pieces:
        return Kept({}, {})
    chosen = choose_pieces(
        np.array([found[n].label for n, _ in pieces]),
        np.array([found[n].sizes[piece] / found[n].sizes.max() for n, piece in pieces]),
        np.array([_centroid(found[n].component(piece).counts(), geometry) for n, piece in pieces]),
        offsets,
    )
    return _keep(labels, ((found[n], piece) for n, piece in (pieces[index] for index in chosen)))


def _keep(labels: np.ndarray, kept: Iterable[tuple[LabelComponents, int]]) -> Kept:
    """Keep one component, counted from 0, of each label, in place."""
    left_out, means, smaller = {}, {}, []
    for found, piece in kept:
        means[found.label] = float(found.means[piece])
        if len(found.sizes) > 1:
            rest = found.without(piece)
            rest.fill(labels, whole_block(labels.shape), 0)
            left_out[found.label] = rest
            if piece != int(np.argmax(found.sizes)):
                smaller.append(found.label)
    return Kept(left_out, means, tuple(smaller))


def learn_offsets(centroids: np.ndarray) -> tuple[Offset, ...]:
    """Compute the offsets between all pairs of organs that two scans or more show.

    Args:
        centroids: (scans, labels, 3) in RAS mm, the label l at index l - 1; NaN if it is absent.
    """
    offsets = []
    for start, end in itertools.combinations(range(centroids.shape[1]), 2):
        seen = centroids[:, end] - centroids[:, start]
        seen = seen[~np.isnan(seen).any(axis=1)]
        if len(seen) < 2:
            continue
        covariance = np.cov(seen.T) + np.eye(3) * SCATTER**2
        mean, rows = seen.mean(axis=0).round(2), covariance.round(2)
        offsets.append(Offset(start + 1, end + 1, tuple(mean.tolist()), _rows(rows)))
    return tuple(offsets)


def choose_pieces(
    labels: np.ndarray, shares: np.ndarray, centroids: np.ndarray, offsets: Sequence[Offset]
) -> np.ndarray:
    """Choose one piece of every label, the likeliest combination by size and position.

    A combination scores the logarithms of its pieces' shares and, of every pair, the logarithm of
    the normal density of its offset relative to the mean's, weighted so that an organ's position
    counts as one observation however many others there are. The best combination is looked for by
    coordinate ascent from every piece.

    Args:
        labels: (pieces,) label of each piece.
        shares: (pieces,) size of each, as a share of its label's largest piece.
        centroids: (pieces, 3) in RAS mm.

    Returns:
        (distinct labels,) indices of the chosen pieces, in the order of their labels.
    """
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    heaviest = np.array([group[np.argmax(shares[group])] for group in groups])
    if len(groups) < 2:
        return heaviest
    pairs = _pair_scores(labels, centroids, offsets) / (len(groups) - 1)
    alone = np.log(shares)

    def ascend(chosen: np.ndarray) -> tuple[float, np.ndarray]:
        while True:
            before = chosen.copy()
            for n, group in enumerate(groups):
                others = np.delete(chosen, n)
                scores = alone[group] + 2 * pairs[np.ix_(group, others)].sum(axis=1)
                chosen[n] = group[np.argmax(scores)]
            if np.array_equal(before, chosen):
                return alone[chosen].sum() + pairs[np.ix_(chosen, chosen)].sum(), chosen

    best = ascend(heaviest.copy())
    for anchor, label in enumerate(labels):
        near = alone + 2 * pairs[anchor] * (len(groups) - 1)
        start = [anchor if labels[g[0]] == label else g[np.argmax(near[g])] for g in groups]
        best = max(best, ascend(np.array(start)), key=lambda found: found[0])
    return best[1]


def _candidates(found: LabelComponents) -> list[int]:
    """Return the largest components, counted from 0, the largest first."""
    order = np.argsort(-found.sizes, kind="stable")[:CANDIDATES]
    return [int(n) for n in order if found.sizes[n] >= LEAST_SHARE * found.sizes.max()]


def centroid(mask: np.ndarray, box: Block, geometry: Geometry) -> np.ndarray:
    """Compute the centroid of a mask, (3,) in RAS mm.

    Args:
        mask: bool, within `box`, with a voxel at the least.
        box: slices (K, J, I) of `geometry`.
    """
    # From the voxels of each plane, as the indices of all voxels of a liver take hundreds of MB.
    planes = [mask.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    return _centroid(planes, geometry, [axis.start for axis in box])


def _centroid(
    counts: Sequence[np.ndarray], geometry: Geometry, first: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """Compute a centroid, (3,) in RAS mm, from the voxels in each plane of K, J and I.

    Args:
        first: numbers (k, j, i) of the planes that are counted first.
    """
    kji = [
        start + np.average(np.arange(len(voxels)), weights=voxels)
        for start, voxels in zip(first, counts, strict=True)
    ]
    return geometry.to_ras(np.array(kji[::-1])[None])[0]


def _pair_scores(
    labels: np.ndarray, centroids: np.ndarray, offsets: Sequence[Offset]
) -> np.ndarray:
    """Compute the logarithmic density of every pair's offset, relative to the mean's.

    Returns:
        (pieces, pieces), symmetric; 0 between pieces of one label, and if no offset is known.
    """
    scores = np.zeros((len(labels), len(labels)))
    for offset in offsets:
        starts, ends = np.flatnonzero(labels == offset.start), np.flatnonzero(labels == offset.end)
        away = centroids[ends] - centroids[starts, None] - offset.mean
        squared = np.einsum("sea,ab,seb->se", away, np.linalg.inv(offset.covariance), away)
        scores[np.ix_(starts, ends)] = -np.minimum(squared, FARTHEST**2) / 2
    return scores + scores.T


def _rows(matrix: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
