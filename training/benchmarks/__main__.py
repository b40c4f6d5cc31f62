# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of speed, measured in one run (`make bench`).

    python -m srcsm_training.benchmarks                 every section, as Markdown tables
    python -m srcsm_training.benchmarks --only sm src   some of them
    python -m srcsm_training.benchmarks --json          the same for a program
    python -m srcsm_training.benchmarks --avx2          then once more as on a processor with AVX2
                                                        alone, as most laptops have

sm        source matching, compared with the literal definition
src       one call of semantic-aware random convolution, compared with loops over labels
step      a training step with random convolution, compared with a step without
processes samples per second of a training on one process and on one for each core
segment   `srcsm segment` from process start, compared with a warm process
large     `srcsm segment` on large CTs, beside a plain SimpleITK script: time and peak memory
sam       SAM: encoder passes for an organ, time from an edit to its masks, size of the cache
refine    SAM Refine in a Slicer scene: from releasing a handle to the new segment
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch

from srcsm_training.benchmarks import training
from srcsm_training.benchmarks.timing import Table, markdown, plain
from srcsm_training.engine.allocator import keep_freed_memory
from srcsm_training.engine.machine import machine
from srcsm_training.experiments.agreement import AS_ON_AVX2
from srcsm_training.experiments.reports import DATA
from SRCSMSegmenterLib.devices import resolve_device

Section = Callable[[Path, Path, torch.device], Sequence[Table]]


def module_section(name: str) -> Section:
    """Return the section of a module, which is imported when the section is measured."""

    def tables(folder: Path, data: Path, device: torch.device) -> Sequence[Table]:
        return import_module(f"srcsm_training.benchmarks.{name}").tables(folder, data, device)

    return tables


SECTIONS: dict[str, Section] = {
    "sm": lambda folder, data, device: [training.source_matching_table()],
    "src": lambda folder, data, device: [
        training.random_convolution_table(device, classes=classes) for classes in (5, 12)
    ],
    "step": lambda folder, data, device: [training.phantom_step_table(folder, device)],
    **{name: module_section(name) for name in ("processes", "segment", "large", "sam", "refine")},
}
"""Sections at full size, called with a folder for temporary files, the data, and a device."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--avx2", action="store_true", help="measure with AVX2 alone as well")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args(argv)
    keep_freed_memory()  # as the commands do
    device = resolve_device(arguments.device)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.json:
            print(f"{machine(device)}\n")
        for name in arguments.only:
            measured = SECTIONS[name](Path(folder), arguments.data, device)
            tables += measured
            if not arguments.json:
                print("\n".join(map(markdown, measured)), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(device), "tables": [*map(plain, tables)]}, indent=1))
    if arguments.avx2:
        sys.stdout.flush()
        given = [one for one in (sys.argv[1:] if argv is None else argv) if one != "--avx2"]
        command = [sys.executable, "-m", "srcsm_training.benchmarks", *given]
        return subprocess.run(command, env=os.environ | AS_ON_AVX2, check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
