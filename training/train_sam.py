# SPDX-License-Identifier: Apache-2.0
"""The same as ``srcsm train-sam``, for ``python`` and ``accelerate launch``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first; its modules would hide others of the same names.
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]
    from srcsm_training.cli.main import main

    sys.exit(main(["train-sam", *sys.argv[1:]]))
