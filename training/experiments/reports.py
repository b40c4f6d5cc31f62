# SPDX-License-Identifier: Apache-2.0
"""Folders, scores and tables of the experiments behind BENCHMARKS.md."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pandas as pd

from srcsm_training.cli.failures import exit_code, sentence
from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import ConfigError, SRCSMError
from SRCSMSegmenterLib.schema import nearest


class Named(Protocol):
    """A run of an experiment."""

    @property
    def name(self) -> str:
        """Its name, which its scores have, too."""
        ...


R = TypeVar("R", bound=Named)

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "training" / "experiments" / "results"
"""Scores, a file per run; they are committed, so that no run has to be repeated."""

DATA = REPOSITORY.parent / "shared" / "data"
"""The development volumes; experiments take others with --data."""

CT, MR = "Dataset101_AbdomenCT", "Dataset102_AbdomenMR"
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
"""Labels of both."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every experiment: where scores lie, and its report."""
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="folder of the scores (default: training/experiments/results)",
    )
    parser.add_argument(
        "--force", action="store_true", help="run again even if the scores are already there"
    )
    parser.add_argument("--report", action="store_true", help="print the tables and exit")
    parser.add_argument(
        "--write", action="store_true", help="with --report: write the tables into BENCHMARKS.md"
    )


def show_report(mark: str, text: str, arguments: argparse.Namespace) -> None:
    """Print a report; if --write is given, write it without empty rows into BENCHMARKS.md."""
    if arguments.write:
        write_report(mark, without_empty_rows(text))
    else:
        print(text)


def without_empty_rows(text: str) -> str:
    """Leave out the rows of tables that have dashes for scores, and no score."""
    lines = [
        line
        for line in text.splitlines()
        if not line.endswith("| – | – |") or re.search(r"\d\.\d+ \|", line)
    ]
    return "\n".join(lines)


def results_file(name: str, results: Path) -> Path:
    """Return the path of a run's scores."""
    return results / f"{name}.csv"


def read_results(name: str, results: Path) -> pd.DataFrame | None:
    """Read the scores of a run; return None if there are none."""
    path = results_file(name, results)
    return pd.read_csv(path) if path.exists() else None


def write_results(name: str, table: pd.DataFrame, results: Path) -> None:
    """Write the scores of a run in one go; the folder is created if it does not exist."""
    results.mkdir(parents=True, exist_ok=True)
    with atomic_write(results_file(name, results)) as temporary:
        table.to_csv(temporary, index=False)


def in_sentences(experiment: Callable[[], int]) -> int:
    """Run an experiment, and say what is wrong if its data, options or models are.

    Returns:
        Its exit code, or that of the error as of `srcsm`.
    """
    try:
        return experiment()
    except (SRCSMError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return exit_code(error)


def chosen_runs(runs: Sequence[R], names: Sequence[str] | None) -> list[R]:
    """Return the runs that --only names, all without it.

    Raises:
        ConfigError: no run has one of the names.
    """
    known = {run.name: run for run in runs}
    for name in names or ():
        if name not in known:
            raise ConfigError(
                f'No run "{name}"{nearest(name, known)}; there are: {", ".join(known)}.'
            )
    return [known[name] for name in known if not names or name in names]


def missing_runs(names: Sequence[str], arguments: argparse.Namespace) -> list[str]:
    """Return the runs without scores, all with --force; say how to repeat those that have some."""
    if arguments.force:
        return list(names)
    missing = []
    for name in names:
        path = results_file(name, arguments.results)
        if path.exists():
            say_how_to_repeat(name, path)
        else:
            missing.append(name)
    return missing


def say_how_to_repeat(name: str, path: Path) -> None:
    """Tell the user that scores are already there and how to run again."""
    print(
        f"{name}: the scores are already in {path}; run again with --force, or with "
        "--results FOLDER to keep them.",
        flush=True,
    )


def write_report(mark: str, text: str, document: Path = REPOSITORY / "BENCHMARKS.md") -> None:
    """Replace the text between the two marks of that name in a Markdown document.

    Raises:
        ValueError: the document lacks the marks.
    """
    before, start, rest = document.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not end:
        raise ValueError(f"{document} lacks the marks <!-- {mark} --> and <!-- /{mark} -->.")
    document.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")
