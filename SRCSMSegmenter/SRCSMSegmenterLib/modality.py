# SPDX-License-Identifier: Apache-2.0
"""The modality of a scan, from its metadata or its intensities."""

import re

import numpy as np

from .geometry import Volume

CT_BELOW = -100
LEAST_BELOW = 0.01
"""A scan of unknown modality is taken for CT if this part of its voxels is below `CT_BELOW`: air is
-1000 HU and fat about -100. MR that others resampled has negative voxels too, but few."""

SOFT_TISSUE = (-300, 400)
"""HU of fat, organs and vessels with contrast agent."""

LEAST_TISSUE = 0.001
"""Part of a CT's voxels that are of soft tissue, at least."""

FEW_INTENSITIES = 32
"""A volume whose integers span fewer values is probably a label map."""

DENSE, LEAST_DENSE = 500, 0.1
"""HU of bone, and the part of a CT's voxels that are denser, at most, unless more are air."""

_CT = re.compile(
    r"(?<![a-z])((cb|nc|ce|ld|hr|pv|pvp|low ?dose ?)?ct(a|p|pa|v)?|cat|hu)(?![a-z])"
    r"|comput(ed|er|ational) ?(axial )?tomogra|hounsfield",
    re.IGNORECASE,
)
_MR = re.compile(
    r"(?<![a-z])(mri?a?|t1|t2|pd|flair|dwi|adc|dixon|spir|lge|swi|mprage|b?ssfp|stir)(?![a-z])"
    r"|(?<![a-z])t[12](w|fs|ce|gd)|magnetic",
    re.IGNORECASE,
)


def guess_modality(array: np.ndarray) -> str:
    """Guess the modality of raw intensities: CT if enough of them are below `CT_BELOW`, else MR."""
    return "CT" if part_below(array) >= LEAST_BELOW else "MR"


def part_below(array: np.ndarray) -> float:
    """Return the part of raw intensities that is below `CT_BELOW`, by a sample of a large scan."""
    return float((_sample(array) < CT_BELOW).mean())


def modality_of(volume: Volume, given: str | None = None) -> str:
    """Return the modality that is given, or else the file's, or else the one guessed."""
    return given or volume.modality or guess_modality(volume.array)


def named_modality(name: object) -> str | None:
    """Return the modality that a channel's name means, such as "CT" for "CTA_venous", or None."""
    words = re.sub(r"[\W_]+", " ", str(name))
    ct, mr = bool(_CT.search(words)), bool(_MR.search(words))
    return None if ct == mr else "CT" if ct else "MR"


def doubts(modality: str, array: np.ndarray) -> list[str]:
    """List why intensities do not look like those of their modality, a sentence each.

    Args:
        array: raw intensities of any shape, or their minimum and maximum.
    """
    low, sample = float(array.min()), _sample(array)
    if array.dtype.kind in "iu" and int(sample.max()) - low < FEW_INTENSITIES:
        return [f"There are fewer than {FEW_INTENSITIES} intensities: is it a label map?"]
    if modality == "MR":
        return [f"MR with negative intensities (down to {low:g}): was it rescaled?"] * (low < 0)
    if low >= CT_BELOW:
        return [f"CT without air (the minimum is {low:g}): are these Hounsfield units?"]
    tissue = (sample > SOFT_TISSUE[0]) & (sample < SOFT_TISSUE[1])
    if sample.size > 2 and tissue.mean() < LEAST_TISSUE:
        return [
            "CT without soft tissue (hardly a voxel from "
            f"{SOFT_TISSUE[0]} to {SOFT_TISSUE[1]}): are these Hounsfield units?"
        ]
    dense = (sample > DENSE).mean()
    if sample.size > 2 and dense > max(LEAST_DENSE, (sample < -DENSE).mean()):
        return [f"CT with more bone than air ({dense:.0%} above {DENSE}): is it inverted?"]
    return []


def contradiction(modality: str, array: np.ndarray) -> str | None:
    """Word how raw intensities contradict a modality; None if they do not."""
    guess = guess_modality(array)
    if guess == modality:
        return None
    return f"taken for {modality}, although {clue(array)}."


def clue(array: np.ndarray) -> str:
    """Describe the raw intensities that `guess_modality` decides by."""
    part = part_below(array)
    if part < LEAST_BELOW:
        return f"hardly a voxel is below {CT_BELOW}"
    return f"{part:.0%} of its voxels are below {CT_BELOW}"


def _sample(array: np.ndarray) -> np.ndarray:
    return array[tuple(slice(None, None, max(1, n // 64)) for n in array.shape)]
