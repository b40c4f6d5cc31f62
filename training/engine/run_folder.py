# SPDX-License-Identifier: Apache-2.0
"""What every training run begins and ends with, whatever it trains.

Its folder keeps config.yaml, environment.json (versions, git state, command, device, precision and
the reason for it, dataset, cases), curve.csv and curve.png.
"""

import csv
import io
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from SRCSMSegmenterLib.atomic import atomic_write

from ..plots import curve_picture
from .accelerator import Computing
from .config import CasesConfig, write_yaml
from .fit import Progress, mean_score
from .source_domain import Source, open_source


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        steps: optimiser steps done.
        finished: False where it was stopped; the same call resumes it.
        best_dice: best mean Dice on the validation cases, nan before the first validation.
        model: what was trained, once finished.
    """

    steps: int
    finished: bool
    best_dice: float
    model: Path | None


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is open.

    Attributes:
        main: True in the process that writes and speaks.
        tell: takes a line for the user.
        labels: names of those that are trained.
    """

    folder: Path
    source: Source
    computing: Computing
    main: bool
    tell: Callable[[str], None]
    labels: list[str]

    @property
    def accelerator(self) -> Accelerator:
        """What trains."""
        return self.computing.accelerator

    def begin(self, config: Any) -> None:  # noqa: ANN401 - any configuration dataclass
        """Write what decides the result, and say if a stopped run goes on in another precision."""
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_yaml(self.folder / "config.yaml", config)
            about = {
                "dataset": self.source.dataset.name,
                "training_cases": [case.name for case in self.source.training],
                "validation_cases": [case.name for case in self.source.validation],
            }
            write_environment(self.folder, self.computing, self.tell, about)

    def write_curve(self, state: Progress) -> None:
        """curve.csv and curve.png, of all that was logged so far."""
        rows = [curve_row(row, self.labels) for row in state.curve]
        if not self.main or not rows:
            return
        text = io.StringIO()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self.folder / "curve.csv", text.getvalue())
        curve_picture(self.folder / "curve.png", rows, self.labels)

    def end(self, state: Progress, model: Path, save: Callable[[Path], None]) -> RunResult:
        """Write the curve and, once the training is finished, the model.

        Args:
            save: called with `model`, in the main process.
        """
        self.write_curve(state)
        if self.main and state.finished:
            save(model)
        self.accelerator.wait_for_everyone()
        best = state.best_dice if state.best_dice >= 0 else math.nan
        return RunResult(state.step, state.finished, best, model if state.finished else None)


def open_run(
    dataset_folder: Path,
    data: CasesConfig,
    run_folder: Path,
    computing: Computing,
    say: Callable[[str], None],
) -> Run:
    """Say what is computed on, then open and check the source of a run.

    Args:
        run_folder: written to by `Run.begin` only.
        say: called on the main process with a line for the user.

    Raises:
        DatasetError, ConfigError, VolumeError.
    """
    main = computing.accelerator.is_main_process
    tell = say if main else (lambda line: None)
    computing.introduce(tell)
    source = open_source(dataset_folder, data, tell, check=main)
    return Run(Path(run_folder), source, computing, main, tell, list(source.dataset.labels))


def curve_row(row: dict, labels: Sequence[str]) -> dict[str, float | str]:
    """One row of curve.csv; Dice is empty between validations."""
    dice = row.get("dice")
    values = [""] * len(labels) if dice is None else dice
    mean = "" if dice is None else float(np.nanmean(dice))
    keys = ("step", "loss", "learning_rate", "gradient_norm", "seconds")
    return {
        **{key: row[key] for key in keys},
        "dice": mean,
        **{f"dice_{label}": value for label, value in zip(labels, values, strict=True)},
        **({"randomised": float(np.nanmean(row["randomised"]))} if "randomised" in row else {}),
    }


def best_validation(state: Progress, labels: Sequence[str]) -> dict[str, float]:
    """Dice per label at the best validation; no number for a label that no case has."""
    validations = [row for row in state.curve if row.get("dice")]
    best = max(validations, key=mean_score)["dice"] if validations else [math.nan] * len(labels)
    scores = zip(labels, best, strict=True)
    return {label: dice for label, dice in scores if not math.isnan(dice)}


def dice_table(dice: dict[str, float]) -> str:
    """Dice per label for a model card, Markdown."""
    lines = [f"| {label} | {value:.3f} |" for label, value in dice.items()]
    return "\n".join(["| label | Dice |", "| --- | --- |", *lines])


def command_line() -> str:
    """What this process was started with."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def write_text(path: Path, text: str) -> None:
    """Write a file; it appears complete or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_environment(
    folder: Path,
    computing: Computing,
    tell: Callable[[str], None],
    about: dict[str, Any] | None = None,
) -> None:
    """Write environment.json, and tell if an earlier one names another precision.

    Args:
        about: what else it shall hold.
    """
    path = folder / "environment.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if (old := before.get("precision", computing.precision)) != computing.precision:
        tell(f"What was begun in {old} goes on in {computing.precision}.")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**_environment(), **computing.record(), **(about or {})}
    write_text(path, json.dumps(environment, indent=2) + "\n")


def _environment() -> dict[str, Any]:
    packages = ("torch", "numpy", "scipy", "SimpleITK", "monai", "accelerate", "safetensors")
    return {
        "command": command_line(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: version(package) for package in packages},
        "git": _git_state(),
    }


def _git_state() -> dict[str, str | bool]:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
