# SPDX-License-Identifier: Apache-2.0
"""The modality of a scan, guessed from its intensities."""

import numpy as np

CT_BELOW = -100
"""A scan of unknown modality with lower intensities is taken for CT: air is -1000 HU, and MR with
negative voxels (resampled by others) does not reach so far below 0."""


def guess_modality(array: np.ndarray) -> str:
    """Guess the modality of raw intensities: CT if the minimum is below `CT_BELOW`, else MR."""
    return "CT" if array.min() < CT_BELOW else "MR"
