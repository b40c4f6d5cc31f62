# SPDX-License-Identifier: Apache-2.0
"""Seconds of work, and tables of them."""

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
    """A row of a table.

    Attributes:
        what: its title.
        values: a value for each column, None for an empty cell.
    """

    what: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Table:
    """A section of the benchmark.

    Attributes:
        columns: names of the rows' values, with units.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def compared(first: str, second: str) -> tuple[str, str, str]:
    """Return the columns of a table of `comparison` rows."""
    return f"{first}, s", f"{second}, s", "ratio"


def comparison(what: str, first: float | None, second: float | None) -> Row:
    """Make a row of the seconds of two ways, None if one lacks the part, and their ratio."""
    return Row(what, (first, second, first / second if first and second else None))


def elapsed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Measure the seconds of one call, including the GPU's work."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def median_elapsed(work: Callable[[], object]) -> float:
    """Measure the median seconds of three calls after one to warm up."""
    return statistics.median([elapsed(work) for _ in range(4)][1:])


def synchronise(device: torch.device | None) -> None:
    """Wait for the work of a GPU."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def times(shape: Sequence[int]) -> str:
    """Format a shape (K, J, I) as a size, I first."""
    return " × ".join(map(str, reversed(shape)))


def a_scan(data: Path, folder: Path) -> Path:
    """Return the path of a real MR of `data`, or of a phantom's if there is none."""
    real = sorted((data / "Dataset102_AbdomenMR" / "imagesTr").glob("*.nii.gz"))
    if real:
        return real[0]
    write_dataset(folder, "MR", 1, seed=0)
    return next((folder / "imagesTr").iterdir())


def markdown(table: Table) -> str:
    """Format a section as Markdown."""
    lines = [f"**{table.title}**", "", f"| | {' | '.join(table.columns)} |"]
    lines.append("| --- |" + " --- |" * len(table.columns))
    for row in table.rows:
        cells = ("–" if value is None else f"{value:.3g}" for value in row.values)
        lines.append(f"| {row.what} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def plain(table: Table) -> dict:
    """Return a section as plain JSON values."""
    rows = [
        {"what": row.what, **dict(zip(table.columns, row.values, strict=True))}
        for row in table.rows
    ]
    return {"title": table.title, "rows": rows}
