# SPDX-License-Identifier: Apache-2.0
"""The modality of a scan: what is said of it, and what its intensities show."""

import re

import numpy as np

from .geometry import Volume

CT_BELOW = -100
"""A scan of unknown modality with lower intensities is taken for CT: air is -1000 HU, and MR with
negative voxels (resampled by others) does not reach so far below 0."""

SOFT_TISSUE = (-300, 400)
"""HU of fat, organs and vessels with contrast agent."""

LEAST_TISSUE = 0.001
"""Part of a CT's voxels that are of soft tissue, at least."""

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
    """Guess the modality of raw intensities: CT if the minimum is below `CT_BELOW`, else MR."""
    return "CT" if array.min() < CT_BELOW else "MR"


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
    low = float(array.min())
    if modality == "MR":
        return [f"MR with negative intensities (down to {low:g}): was it rescaled?"] * (low < 0)
    if low >= CT_BELOW:
        return [f"CT without air (the minimum is {low:g}): are these Hounsfield units?"]
    sample = array[tuple(slice(None, None, max(1, n // 64)) for n in array.shape)]
    tissue = (sample > SOFT_TISSUE[0]) & (sample < SOFT_TISSUE[1])
    if sample.size > 2 and tissue.mean() < LEAST_TISSUE:
        return [
            "CT without soft tissue (hardly a voxel from "
            f"{SOFT_TISSUE[0]} to {SOFT_TISSUE[1]}): are these Hounsfield units?"
        ]
    return []


def contradiction(modality: str, array: np.ndarray) -> str | None:
    """Word how raw intensities contradict a modality; None if they do not."""
    guess, low = guess_modality(array), float(array.min())
    if guess == modality:
        return None
    what = f"no voxel is below {CT_BELOW}" if guess == "MR" else f"voxels reach down to {low:g}"
    return f"taken for {modality}, although {what}."
