# SPDX-License-Identifier: Apache-2.0
"""What the scripts behind BENCHMARKS.md share: where data, scores and tables lie."""

from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "training" / "experiments" / "results"
"""Scores, a file for each run; they are committed, so that no run is done twice."""

DATA = REPOSITORY.parent / "shared" / "data"
"""The development volumes; scripts take others with --data."""

CT, MR = "Dataset101_AbdomenCT", "Dataset102_AbdomenMR"


def read_results(name: str) -> pd.DataFrame | None:
    """The scores of a run, or None where it was not run."""
    path = RESULTS / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else None


def write_report(mark: str, text: str, document: Path = REPOSITORY / "BENCHMARKS.md") -> None:
    """Put a text between the two marks of that name in a Markdown document.

    Raises:
        ValueError: it lacks them.
    """
    before, start, rest = document.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not end:
        raise ValueError(f"{document} lacks the marks <!-- {mark} --> and <!-- /{mark} -->.")
    document.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")
