# SPDX-License-Identifier: Apache-2.0
"""Timers of work, and tables of seconds for the benchmark."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from srcsm_training.data.phantom import write_dataset

ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")


@dataclass(frozen=True)
class Row:
    """A row of a table: a value for each column, or None."""

    what: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Table:
    """A section of the benchmark; `columns` names the values of its rows, with their units."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def compared(first: str, second: str) -> tuple[str, str, str]:
    """Name the columns of a `comparison`."""
    return f"{first}, s", f"{second}, s", "ratio"


def comparison(what: str, first: float | None, second: float | None) -> Row:
    """Make a row of the seconds of two ways to do the same, and of their ratio.

    Args:
        first, second: None if that way has no such part.
    """
    return Row(what, (first, second, first / second if first and second else None))


def elapsed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Measure the seconds of one call, the GPU's part included."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def median_elapsed(work: Callable[[], object], repeats: int = 3) -> float:
    """Measure the median seconds of some calls after one to warm up."""
    return statistics.median([elapsed(work) for _ in range(repeats + 1)][1:])


def synchronise(device: torch.device | None) -> None:
    """Wait until a GPU has done its work."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def times(shape: Sequence[int]) -> str:
    """Format a shape (K, J, I) as a size, I first."""
    return " × ".join(map(str, reversed(shape)))


def machine(device: torch.device) -> str:
    """Describe the machine: processor, cores, threads, torch and device."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        re.findall(r"model name\s*: (.*)", cpuinfo.read_text("utf-8")) if cpuinfo.exists() else []
    )
    processor = names[0] if names else platform.processor()
    if device.type == "cuda":
        processor += f", {torch.cuda.get_device_name(device)}"
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, device {device}"
    )


def a_scan(data: Path, folder: Path) -> Path:
    """Return a real MR of `data`, or a phantom's if there is none."""
    real = sorted((data / "Dataset102_AbdomenMR" / "imagesTr").glob("*.nii.gz"))
    if real:
        return real[0]
    write_dataset(folder, "MR", 1, seed=0)
    return next((folder / "imagesTr").iterdir())


def markdown(table: Table) -> str:
    """Format a table as a section of BENCHMARKS.md."""
    lines = [f"**{table.title}**", "", f"| | {' | '.join(table.columns)} |"]
    lines.append("| --- |" + " --- |" * len(table.columns))
    for row in table.rows:
        cells = ("–" if value is None else f"{value:.3g}" for value in row.values)
        lines.append(f"| {row.what} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def plain(table: Table) -> dict:
    """Convert a table to plain values for JSON."""
    rows = [
        {"what": row.what, **dict(zip(table.columns, row.values, strict=True))}
        for row in table.rows
    ]
    return {"title": table.title, "rows": rows}
