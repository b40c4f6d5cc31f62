# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training on this machine, from a few of its steps."""

import json
import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from SRCSMSegmenterLib.volume_io import read_geometry

from ..data.dataset import Case
from ..data.packed import is_packed
from .config import CasesConfig
from .limits import Limits
from .machine import machine

STATUS = Path("/proc/self/status")
"""Linux's account of this process."""

WARM_UP = 3
STEPS = 10
SECONDS = 20.0
"""Time after which nothing more is measured, if there is at least one step."""

CASES = 2
"""Training cases that are measured with; the others would only take time to prepare."""

BYTES_PER_VOXEL = 3
"""Of a prepared case: float16 intensities and uint8 labels."""


class _Enough(Exception):
    """The end of a measurement."""


@dataclass(frozen=True)
class Estimate:
    """Time and memory that a training takes.

    Attributes:
        seconds: of a step.
        memory: highest use by this process, bytes; 0 if the system does not tell.
        device: "cpu", "cuda:0" ...
        device_memory: highest use on a GPU, bytes.
        precision: and the reason for it, in words.
    """

    seconds: float
    memory: int
    device: str
    device_memory: int
    precision: str

    def lines(self, steps: int, what: str = "training") -> list[str]:
        """Describe a training of so many steps in lines: the machine, the time, the memory."""
        memory = [f"{self.memory / 1e9:.1f} GB"] if self.memory else []
        if self.device_memory:
            memory.append(f"{self.device_memory / 1e9:.1f} GB on the GPU")
        return [
            f"measured on {machine(torch.device(self.device))}, in {self.precision}",
            f"{what}: about {duration(self.seconds * steps)} ({steps} x "
            f"{self.seconds:.2g} s), without validations and previews",
            f"memory: about {' and '.join(memory) or 'unknown'}",
        ]


def measure(
    run: Callable[[Path, Callable[[int], None]], object], warm_up: int = WARM_UP
) -> Estimate:
    """Run the first steps of a training in a folder that is deleted, and time them.

    Stops after `STEPS` steps or `SECONDS`.

    Args:
        run: called with the run folder and a function to call with the steps that are done after
            every step. No checkpoint is written, as that function ends the run by an exception.
        warm_up: steps that are not counted, if there are others.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    marks = [(0, time.perf_counter())]

    def done(step: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append((step, time.perf_counter()))
        if len(marks) > warm_up + STEPS or marks[-1][1] - marks[0][1] > SECONDS:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        with suppress(_Enough):
            run(Path(folder), done)
        environment = json.loads(next(Path(folder).rglob("environment.json")).read_text("utf-8"))
    laps = [(end - start) / (after - before) for (before, start), (after, end) in pairwise(marks)]
    on_gpu = environment["device"].startswith("cuda")
    return Estimate(
        seconds=statistics.median(laps[warm_up:] or laps[-1:]) if laps else math.nan,
        memory=peak_memory(),
        device=environment["device"],
        device_memory=torch.cuda.max_memory_allocated() if on_gpu else 0,
        precision=f"{environment['precision']}: {environment['precision_reason']}",
    )


def measure_training(
    training: Callable[..., object],
    config: Any,  # noqa: ANN401 - any configuration of a training on cases
    cases: Sequence[Case],
    device: str,
) -> Estimate:
    """Measure a training on some of its cases; the memory of the others is added.

    Args:
        training: called as training(config, run_folder, device=, limits=).
        cases: all training cases.

    Raises:
        What the training raises.
    """
    chosen, others = cases[:CASES], cases[CASES:]
    few: CasesConfig = replace(
        config.data, cases=tuple(escape(case.name) for case in chosen), validation=(), folds=0
    )

    def run(folder: Path, done: Callable[[int], None]) -> None:
        training(
            replace(config, data=few),
            folder,
            device=device,
            limits=Limits(say=lambda line: None, report=lambda progress: done(progress.step)),
        )

    estimate = measure(run)
    unread = [case.image for case in others if not is_packed(case.image)]
    waiting = BYTES_PER_VOXEL * sum(map(voxels, unread))
    return replace(estimate, memory=estimate.memory and estimate.memory + waiting)


def voxels(path: Path) -> int:
    """Count the voxels of a volume from its header."""
    return math.prod(read_geometry(path).size)


def peak_memory() -> int:
    """Return the most memory that this process has used, in bytes; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    if STATUS.exists():  # Linux's ru_maxrss is at least that of the process that started this one
        (most,) = re.findall(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text("utf-8"), re.MULTILINE)
        return 1024 * int(most)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def duration(seconds: float) -> str:
    """Word a duration with the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
