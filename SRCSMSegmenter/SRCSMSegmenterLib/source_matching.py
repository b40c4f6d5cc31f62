# SPDX-License-Identifier: Apache-2.0
"""Source matching (SM) of a scan to the intensity distribution of the training images.

Thaler et al. 2026 (arXiv 2512.01510). It works on a scan's own voxels, before smoothing and
resampling. Five points, which are more exact than the paper, decide every integer:

1. clip (CT) or scale to a maximum of 2048 (MR), round half to even (`to_integers`);
2. the interior is what lies strictly between a volume's minimum (lo) and maximum (hi);
3. the source is the sum of the interior counts of all training images (`fit`);
4. an interior value goes to the largest source value whose CDF is not above its own, or, if there
   is none, to the source minimum; lo goes to the source minimum, hi goes along with the largest
   interior value (`match`);
5. fewer than two distinct interior values on either side is an error.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError, SourceMatchingError
from .intensity import TABLE, IntensityRule, integer_span, scaling, tabulated

BLOCK = 1 << 17
"""Voxels worked on at a time: their float64 and index copies (1 MiB each) stay in the cache."""

INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class SourceHistogram:
    """Interior intensities of all training images together; travels in the model bundle.

    Attributes:
        values: (n,) int32, the distinct interior values in ascending order, n >= 2.
        counts: (n,) int64, voxels of each value over all training images.
        minimum: the smallest minimum of any training image, below all values.

    Raises:
        SourceMatchingError: arrays that are no such histogram.
    """

    values: np.ndarray
    counts: np.ndarray
    minimum: int

    def __post_init__(self) -> None:
        values, counts = np.array(self.values), np.array(self.counts)
        if fault := _fault(values, counts, self.minimum):
            raise SourceMatchingError(
                f"The source histogram is damaged ({fault}); use an intact one or run without "
                "source matching."
            )
        values, counts = values.astype(np.int32), counts.astype(np.int64)
        values.setflags(write=False)
        counts.setflags(write=False)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "counts", counts)

    def to_dict(self) -> dict[str, int | list[int]]:
        """Return plain integers and lists, ready for JSON."""
        return {
            "minimum": self.minimum,
            "values": self.values.tolist(),
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, int | list[int]]) -> "SourceHistogram":
        """Read the histogram that `to_dict` wrote.

        Raises:
            SourceMatchingError: anything else.
        """
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise SourceMatchingError(
                f"The source histogram cannot be read ({error}); use an intact one or run without "
                "source matching."
            ) from error


def to_integers(
    array: np.ndarray,
    rule: IntensityRule,
    scaled: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Clip (CT) or scale (MR) a volume and round half to even: step 1 of source matching.

    Args:
        array: raw intensities, any shape and real dtype; left as it is.
        rule: of the volume's own modality.
        scaled: the scaling of the volume that the intensities are a part of; by default they are
            the whole volume.

    Returns:
        int32 array of the same shape.

    Raises:
        VolumeError: NaN or infinite voxels, or an MR volume without a positive maximum.
        SourceMatchingError: scaled intensities that do not fit int32.
    """
    scaled = scaled or scaling(array, rule)
    lo, hi = np.rint(scaled(np.array([array.min(), array.max()])))
    if lo < INT32.min or hi > INT32.max:
        raise SourceMatchingError(
            f"Intensities scaled to {lo:g} ... {hi:g} are too far apart for source matching; "
            "check the volume or run without source matching."
        )
    flat = array.reshape(-1)
    integers = np.empty(array.size, np.int32)
    for part in _blocks(array.size):
        block = scaled(flat[part])
        integers[part] = np.rint(block, out=block)
    return integers.reshape(array.shape)


def fit(images: Iterable[np.ndarray]) -> SourceHistogram:
    """Add up the interior counts of the training images: steps 2 and 3 of source matching.

    Args:
        images: int32 arrays from `to_integers`, any shape; only one is held at a time.

    Raises:
        SourceMatchingError: fewer than two distinct interior values in all images together.
    """
    # map, unlike a loop over the images, lets go of each before it asks for the next.
    return add_counts(map(count_values, images))


def add_counts(counted: Iterable[tuple[np.ndarray, np.ndarray]]) -> SourceHistogram:
    """Add up the interior counts of training images whose values are counted; see `fit`.

    Args:
        counted: of each image, what `count_values` returns.
    """
    totals: Counter[int] = Counter()
    minima = []
    for values, counts in counted:
        minima.append(int(values[0]))
        totals.update(dict(zip(values[1:-1].tolist(), counts[1:-1].tolist(), strict=True)))
    _require_two(len(totals), "the training images")
    values = sorted(totals)
    return SourceHistogram(
        np.array(values), np.array([totals[value] for value in values]), min(minima)
    )


def match(target: np.ndarray, source: SourceHistogram) -> np.ndarray:
    """Give an image the source's distribution: steps 2, 4 and 5 of source matching.

    Args:
        target: int32 array from `to_integers`, any shape; left as it is.

    Returns:
        int32 array of the same shape, of source values and the source minimum only.

    Raises:
        SourceMatchingError: fewer than two distinct interior values in the target.
    """
    values, counts = count_values(target)
    return _replace(target, values, _matched(values, counts, source))


def _matched(values: np.ndarray, counts: np.ndarray, source: SourceHistogram) -> np.ndarray:
    """Match the distinct values (n,) of an image, lo and hi among them, to (n,) source values."""
    _require_two(values.size - 2, "the volume")
    # Both sides are float64 quotients of integers below 2^53, so equal fractions compare equal.
    below = np.searchsorted(_cdf(source.counts), _cdf(counts[1:-1]), side="right")
    interior = np.append(np.int32(source.minimum), source.values)[below]
    return np.concatenate([[source.minimum], interior, interior[-1:]]).astype(np.int32)


def match_to_source(array: np.ndarray, rule: IntensityRule, source: SourceHistogram) -> np.ndarray:
    """Match a raw volume to the source, as inference does it.

    Args:
        array: raw intensities, any shape and real dtype; left as it is.
        rule: the bundle's rule, with the modality of this volume
            (`dataclasses.replace(bundle_rule, modality="MR")`).

    Returns:
        int32 array of the same shape, in place of the result of `scale`: smoothing and resampling
        come next.

    Raises:
        VolumeError, SourceMatchingError: as `to_integers` and `match`.
    """
    return match(to_integers(array, rule), source)


def wanted(choice: str, modality: str, rule: IntensityRule) -> bool:
    """Tell whether to match a scan to the source.

    Args:
        choice: "on", "off", or "auto": on if the scan's modality is not the network's.
        modality: of the scan, "CT" or "MR".
        rule: the bundle's rule.

    Raises:
        ConfigError: any other choice.
    """
    choices = {"on": True, "off": False, "auto": modality != rule.modality}
    if choice not in choices:
        raise ConfigError(f'source matching is "on", "off" or "auto", not {choice!r}.')
    return choices[choice]


def matched_voxels(
    array: np.ndarray, rule: IntensityRule, source: SourceHistogram
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Prepare `match_to_source` block by block.

    Of integer voxels the histogram is counted once, and all five points of the definition become
    one table; others are matched here.

    Args:
        array: (K, J, I) raw intensities of any real dtype; left as it is.

    Returns:
        An array of that shape, and a function from any block of it to float32: the integers of
        `match_to_source`.

    Raises:
        VolumeError, SourceMatchingError: as `to_integers` and `match`.
    """
    span = integer_span(array)
    if span is None:
        return match_to_source(array, rule, source), lambda block: block.astype(np.float32)
    counts = _counted(array, span)
    raw = np.flatnonzero(counts)
    integers = to_integers(raw + span[0], rule, scaling(array, rule))
    values, places = np.unique(integers, return_inverse=True)
    merged = np.zeros(values.size, np.int64)
    np.add.at(merged, places, counts[raw])
    table = np.zeros(counts.size, np.float32)
    table[raw] = _matched(values.astype(np.int64), merged, source)[places]
    return array, tabulated(array.dtype, span, table)


def _counted(array: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """Count integer voxels by value: (span[1] - span[0] + 1,) int64."""
    import torch  # whose bincount takes half the time; when needed, as Slicer loads this at start

    length = span[1] - span[0] + 1
    kind = np.int32 if max(-span[0], span[1]) < 2**31 else np.int64
    # By planes, as a scan that is mirrored for the network is not contiguous.
    planes, threads = max(1, BLOCK // array[0].size), torch.get_num_threads()

    def count(firsts: range) -> np.ndarray:
        counts = torch.zeros(length, dtype=torch.int64)
        for first in firsts:
            block = array[first : first + planes].astype(kind, order="C")
            values = torch.from_numpy(block) - span[0]
            counts += torch.bincount(values.view(-1), minlength=length)
        return counts.numpy()

    firsts = range(0, len(array), planes)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(count, (firsts[n::threads] for n in range(threads))))


def _cdf(counts: np.ndarray) -> np.ndarray:
    cumulative = np.cumsum(counts)
    return cumulative / cumulative[-1]


def count_values(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the distinct values of an int32 image: values, ascending, and counts, both int64."""
    if image.dtype != np.int32:
        raise TypeError(f"Source matching works on int32 (see to_integers), not {image.dtype}.")
    lo, hi = int(image.min()), int(image.max())
    if hi - lo >= TABLE:
        values, counts = np.unique(image, return_counts=True)
        return values.astype(np.int64), counts
    flat = image.reshape(-1)
    counts = np.zeros(hi - lo + 1, np.int64)
    for part in _blocks(image.size):
        counts += np.bincount(flat[part] - np.int64(lo), minlength=counts.size)
    present = np.flatnonzero(counts)
    return present + lo, counts[present]


def _replace(image: np.ndarray, values: np.ndarray, matched: np.ndarray) -> np.ndarray:
    """Replace each of the distinct `values` (int64, ascending) of an image."""
    lo, hi = values[0], values[-1]
    if hi - lo >= TABLE:
        return matched[np.searchsorted(values, image)]
    table = np.zeros(hi - lo + 1, np.int32)
    table[values - lo] = matched
    flat = image.reshape(-1)
    result = np.empty(image.size, np.int32)
    for part in _blocks(image.size):
        # Every index is in range; "clip" only spares take the buffer that "raise" needs.
        table.take(flat[part] - lo, out=result[part], mode="clip")
    return result.reshape(image.shape)


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def _require_two(interior_values: int, where: str) -> None:
    if interior_values < 2:
        raise SourceMatchingError(
            "Source matching needs two distinct intensities between the minimum and the maximum "
            f"of {where}, found {max(interior_values, 0)}; run without source matching."
        )


def _fault(values: np.ndarray, counts: np.ndarray, minimum: int) -> str:
    """Describe the fault of a histogram; "" if it has none."""
    if values.dtype.kind != "i" or counts.dtype.kind != "i" or not isinstance(minimum, int):
        return "not all entries are integers"
    if values.ndim != 1 or values.shape != counts.shape or values.size < 2:
        return f"{values.shape} values and {counts.shape} counts"
    if values.max() > INT32.max or minimum < INT32.min:
        return "values beyond int32"
    if minimum >= values[0] or (values[1:] <= values[:-1]).any():
        return "minimum and values do not ascend"
    if counts.min() < 1 or counts.sum(dtype=np.float64) >= 2**53:
        return "counts must be positive and add up to less than 2^53"
    return ""
