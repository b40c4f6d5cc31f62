# SPDX-License-Identifier: Apache-2.0
"""``python -m srcsm_training``: the same as ``srcsm``, for ``accelerate launch -m``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, in which modules of other people may lie

    from .cli.main import main

    sys.exit(main())
