# SPDX-License-Identifier: Apache-2.0
"""State of the code that a run is made by."""

import subprocess
from pathlib import Path


def git_state() -> dict[str, str | bool]:
    """Return the commit of the code and whether files differ from it; nothing outside git."""

    def git(*arguments: str) -> str:
        options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
        return subprocess.run(["git", *arguments], check=True, **options).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
