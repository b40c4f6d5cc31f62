#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the modules' own tests and both tutorials inside a 3D Slicer, with a picture of each step.

    python Testing/run_in_slicer.py --slicer /opt/Slicer-5.12/Slicer --output slicer-run

Written are one PNG per step and report.json: the tests that failed, and for each step how long the
window stood still at most. Without a Slicer, it says so and does nothing. The exit code is 0, or 1
if a test or a step failed. The script needs nothing but Python; Slicer needs PyTorch to segment.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("SRCSMSegmenter", "SAMRefine")
MINUTES = 30


def main(arguments: list[str] | None = None) -> int:
    """Start Slicer, wait for its end, and print what it reported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--slicer", help="the Slicer program (default: $SLICER, else the Slicer on the PATH)"
    )
    parser.add_argument("--output", type=Path, default=Path("slicer-run"), help="folder to write")
    options = parser.parse_args(arguments)
    program = shutil.which(options.slicer or os.environ.get("SLICER", "Slicer"))
    if program is None:
        print("Skipped: there is no Slicer here; give --slicer PATH.")
        return 1 if options.slicer else 0
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    report = output / "report.json"
    report.unlink(missing_ok=True)
    log = output / "slicer.log"
    with log.open("wb") as file:
        try:
            ended = subprocess.run(
                command(program, output), stdout=file, stderr=file, timeout=60 * MINUTES
            )
        except subprocess.TimeoutExpired:
            print(f"Slicer did not end within {MINUTES} minutes; see {log}.")
            return 1
    if not report.is_file():
        print(f"Slicer ended ({ended.returncode}) without a report; see {log}.")
        return 1
    content = json.loads(report.read_text(encoding="utf-8"))
    print(as_text(content))
    return 1 if content["failed"] else 0


def command(program: str, output: Path) -> list[str]:
    """Return the command that starts Slicer with the modules of this repository."""
    paths = [str(ROOT / module) for module in MODULES]
    script = ROOT / "Testing" / "helpers" / "in_slicer.py"
    flags = ["--testing", "--no-splash", "--ignore-slicerrc", "--disable-settings"]
    return [program, *flags, "--additional-module-paths", *paths, "--python-script", str(script),
            str(output)]  # fmt: skip


def as_text(report: dict[str, Any]) -> str:
    """Format a report for a reader."""
    lines = [f"Slicer {report['slicer']}: {report['tests']} tests"]
    lines += [
        f"  {step['name']:<44} {step['seconds']:6.1f} s, stood still {step['stall_ms']:5.0f} ms"
        for step in report["steps"]
    ]
    lines += [f"  FAILED: {what}" for what in report["failed"]]
    longest = max((step["stall_ms"] for step in report["steps"]), default=0)
    lines.append(f"{len(report['failed'])} failed; the window stood still {longest:.0f} ms at most")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
