# SPDX-License-Identifier: Apache-2.0
"""``python -m srcsm_training``: the same as ``srcsm``, for ``accelerate launch -m``."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
