# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run, whatever it trains.

It keeps environment.json (versions, git state, command, device, precision and the reason for it),
checkpoints/last.pt and curve.csv; that of a training on cases also config.yaml and curve.png.
"""

import csv
import io
import json
import math
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from filelock import FileLock, Timeout

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import BundleError

from ..plots import curve_picture
from .accelerator import Computing
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint, without_precision
from .code_state import git_state
from .config import StepsConfig, to_dict, write_yaml
from .progress import Progress, mean_score
from .source_domain import Source

CHECKPOINT_KEYS = ("identity", "network", "average", "optimiser", "scaler", "best", "progress")
DATA_KEYS = ("naming of labels", "content of cases")
"""Keys of the identity that were added last."""

PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "monai", "accelerate", "safetensors")
"""Packages whose versions environment.json names."""

STEPS = "optimisation.steps"
"""The key that may grow when a training is extended."""

MOST_DIFFERENCES = 4
"""Differing keys that a message names."""

LONGEST_VALUE = 80
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        steps: optimiser steps done.
        finished: False if the run was stopped; the same call resumes it.
        best_dice: best mean Dice on the validation cases, NaN before the first validation.
        model: file or folder of the trained model; None until the run is finished.
    """

    steps: int
    finished: bool
    best_dice: float
    model: Path | None


class FitConfig(Protocol):
    """Part of a configuration that `fit` reads.

    Attributes:
        validate_every: steps between two validations or previews; 0: at the end only.
    """

    optimisation: StepsConfig
    seed: int
    checkpoint_minutes: float
    validate_every: int


@dataclass(eq=False)
class Run:
    """An open run.

    Attributes:
        config: decides the result; of it, `fit` reads what `FitConfig` names.
        identity: plain values that must be equal for a checkpoint to be resumed, by what they are.
        labels: names of the labels that validations score.
        tell: called with a line for the user; silent on all but the main process.
        checkpoint: state to resume until `fit` takes it; None for a new run.
        lock: held while the run is open, see `lock_folder`.
    """

    folder: Path
    config: Any
    computing: Computing
    identity: dict[str, Any]
    labels: Sequence[str]
    tell: Callable[[str], None]
    checkpoint: dict[str, Any] | None
    lock: FileLock | None = None

    @property
    def accelerator(self) -> Accelerator:
        """The accelerator that trains."""
        return self.computing.accelerator

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.computing.main

    def take_checkpoint(self) -> dict[str, Any] | None:
        """Hand the state to resume over, so that its memory is freed once it is no longer used."""
        checkpoint, self.checkpoint = self.checkpoint, None
        return checkpoint

    def save(self, state: dict[str, Any]) -> None:
        """Write the state to resume.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.main:
            save_checkpoint(_checkpoint(self.folder), {"identity": self.identity, **state})

    def write_curve(self, progress: Progress) -> None:
        """Write curve.csv and, of a training with labels, curve.png."""
        rows = [curve_row(row, self.labels) for row in progress.curve]
        if not self.main or not rows:
            return
        text = io.StringIO()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self.folder / "curve.csv", text.getvalue())
        if self.labels:
            curve_picture(self.folder / "curve.png", rows, self.labels)

    def end(self, progress: Progress, model: Path, save: Callable[[Path], None]) -> RunResult:
        """Write the curve and, once the training is finished, the model.

        Args:
            save: called with `model`, on the main process.

        Raises:
            CheckpointError: the model cannot be written.
        """
        self.write_curve(progress)
        if self.main and progress.finished:
            try:
                save(model)
            except BundleError as error:  # the disk's: models that are read were read before
                raise CheckpointError(str(error)) from error
        self.accelerator.wait_for_everyone()
        best = progress.best_dice if progress.best_dice >= 0 else math.nan
        done = progress.finished
        return RunResult(progress.step, done, best, model if done else None)


def open_run(
    folder: Path,
    config: FitConfig,
    computing: Computing,
    *,
    identity: dict[str, Any],
    tell: Callable[[str], None],
    labels: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    extend: bool = False,
) -> Run:
    """Open the folder of a run: read its checkpoint, and write environment.json.

    Args:
        folder: made if it does not exist.
        about: further content of environment.json.
        extend: see `state_to_resume`.

    Raises:
        CheckpointError: the checkpoint cannot be read or is of another training, or another
            process trains in the folder; nothing was written then.
    """
    checkpoint = state_to_resume(folder, identity, extend)
    lock = lock_folder(folder) if computing.main else None
    if computing.main:
        write_environment(folder, computing, tell, about)
    return Run(folder, config, computing, identity, labels, tell, checkpoint, lock)


def lock_folder(folder: Path) -> FileLock | None:
    """Lock the folder of a run, made if it does not exist, for this process.

    Returns:
        The lock, which ends with its last reference or the process; None if the disk has no locks.

    Raises:
        CheckpointError: another process holds the lock.
    """
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise CheckpointError(
            f"Another process trains in {folder}; let it finish, stop it, or choose another "
            "run folder."
        ) from None
    except (OSError, NotImplementedError):
        return None
    return lock


def open_case_run(
    folder: Path,
    config: FitConfig,
    computing: Computing,
    source: Source,
    *,
    tell: Callable[[str], None],
    labels: Sequence[str] | None = None,
    also: Sequence[str] = (),
    extend: bool = False,
) -> Run:
    """Open the run of a training on the cases of a dataset, and write its config.yaml.

    Args:
        config: a configuration dataclass.
        labels: names of the labels that are trained; those of the dataset by default.
        also: names of other inputs of the training, which a checkpoint must agree with.
        extend: see `state_to_resume`.

    Raises:
        CheckpointError: see `open_run`.
    """
    training, validation = (
        [case.name for case in cases] for cases in (source.training, source.validation)
    )
    about = {
        "dataset": source.dataset.name,
        "training_cases": training,
        "validation_cases": validation,
    }
    identity = case_identity(config, [*training, *also], validation) | {
        "naming of labels": dict(source.dataset.labels),
        "content of cases": source.contents(),
    }
    run = open_run(
        folder,
        config,
        computing,
        identity=identity,
        tell=tell,
        labels=list(source.dataset.labels) if labels is None else labels,
        about=about,
        extend=extend,
    )
    if run.main:
        write_yaml(run.folder / "config.yaml", config)
    return run


def case_identity(
    config: FitConfig, training: Sequence[str], validation: Sequence[str]
) -> dict[str, Any]:
    """Return the plain values that must be equal for a training on cases to be resumed."""
    settings = to_dict(config)
    del settings["checkpoint_minutes"]
    return {"configuration": settings, "set of cases": [list(training), list(validation)]}


def state_to_resume(
    folder: Path, identity: dict[str, Any], extend: bool = False
) -> dict[str, Any] | None:
    """Read the last checkpoint of a run folder; None if there is none.

    Args:
        extend: the training goes on to the steps of `identity` if these are more than those of the
            checkpoint's configuration.

    Raises:
        CheckpointError: it cannot be read or has another identity, precisions left out; the
            message names what differs, with both values.
    """
    path = _checkpoint(folder)
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path)
    if not all(isinstance(checkpoint.get(key), dict) for key in CHECKPOINT_KEYS):
        raise CheckpointError(
            f"{path} is no checkpoint of a training; delete it to start this run anew."
        )
    old, new = (without_precision(i) for i in (checkpoint["identity"], identity))
    old = {key: new[key] for key in DATA_KEYS if key in new} | old  # older ones do not tell
    differences = list(_differences(old, new))
    more = [key for key, before, now in differences if key.endswith(STEPS) and now > before]
    if extend and more and len(differences) == 1:
        checkpoint["progress"] |= {"finished": False, "waited": 0}
        return checkpoint
    if differences:
        kinds = sorted(key for key in {*new, *old} if new.get(key) != old.get(key))
        listed = [f"{key} is {_short(now)}, was {_short(was)}" for key, was, now in differences]
        hint = " A larger number of steps needs --extend." if more else ""
        if extend:
            hint = " --extend takes a larger number of steps, and changes nothing else."
        raise CheckpointError(
            f"{path} belongs to a training with another {' and another '.join(kinds)} "
            f"({'; '.join(listed[:MOST_DIFFERENCES])}"
            f"{' and more' if len(listed) > MOST_DIFFERENCES else ''}); choose another run folder, "
            f"or give the same dataset and options to resume.{hint}"
        )
    return checkpoint


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yield the keys in which plain values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            inside = f"{where}.{key}" if where else str(key)
            yield from _differences(old.get(key, "absent"), new.get(key, "absent"), inside)
    elif old != new:
        yield where.removeprefix("configuration."), old, new


def _short(value: Any) -> str:  # noqa: ANN401
    text = json.dumps(value, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def curve_row(row: dict, labels: Sequence[str]) -> dict[str, float | str]:
    """Return a row of curve.csv; its Dice is empty between validations."""
    dice = row.get("dice")
    scores: dict[str, float | str] = {}
    if labels:
        values = [""] * len(labels) if dice is None else dice
        scores["dice"] = "" if dice is None else float(np.nanmean(dice))
        scores |= {f"dice_{label}": v for label, v in zip(labels, values, strict=True)}
    scores |= {
        kind: float(np.nanmean(values))
        for kind, values in row.items()
        if isinstance(values, list) and kind != "dice"
    }
    parts = (key for key in row if key.startswith("loss_"))
    keys = ("step", "loss", *parts, "learning_rate", "gradient_norm", "seconds")
    return {key: row[key] for key in keys} | scores


def best_validation(progress: Progress, labels: Sequence[str]) -> dict[str, float]:
    """Return the Dice per label at the best validation, without labels that no case has."""
    validations = [row for row in progress.curve if row.get("dice")]
    best = max(validations, key=mean_score)["dice"] if validations else [math.nan] * len(labels)
    scores = zip(labels, best, strict=True)
    return {label: dice for label, dice in scores if not math.isnan(dice)}


def dice_table(dice: dict[str, float]) -> str:
    """Format the Dice per label for a model card, Markdown."""
    lines = [f"| {label} | {value:.3f} |" for label, value in dice.items()]
    return "\n".join(["| label | Dice |", "| --- | --- |", *lines])


def command_line() -> str:
    """Return the command line that started this process."""
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
    """Write environment.json, and tell the user if an earlier one names another precision.

    Args:
        about: further content.
    """
    path = folder / "environment.json"
    old = _precision_before(path) or computing.precision
    if old != computing.precision:
        tell(f"What was begun in {old} goes on in {computing.precision}.")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**_environment(), **computing.record(), **(about or {})}
    write_text(path, json.dumps(environment, indent=2) + "\n")


def _precision_before(path: Path) -> str | None:
    """Read the precision of an earlier environment.json; None if there is none to be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["precision"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"


@cache
def _environment() -> dict[str, Any]:
    return {
        "command": command_line(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "git": git_state(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
