# SPDX-License-Identifier: Apache-2.0
"""Is a scan CT or MR?"""

import numpy as np

CT_BELOW = -100
"""A scan of unknown modality that reaches below this is taken for CT; air is -1000 HU, and MR with
negative voxels (resampled by others) does not reach so far below 0."""


def guess_modality(array: np.ndarray) -> str:
    """The modality of raw intensities: CT where the minimum is below -100, else MR."""
    return "CT" if array.min() < CT_BELOW else "MR"
