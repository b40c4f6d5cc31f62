# SPDX-License-Identifier: Apache-2.0
"""The same as ``srcsm train``, for ``python`` and ``accelerate launch``."""

import os
import sys

if __name__ == "__main__":
    # Python puts this folder first, so that its modules would hide others of the same names.
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != here]
    from srcsm_training.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
