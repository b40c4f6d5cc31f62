# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: its lock, and rows of its curve."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from srcsm_training.cli.failures import exit_code
from srcsm_training.engine.checkpoint import CheckpointError, save_checkpoint
from srcsm_training.engine.progress import Progress
from srcsm_training.engine.run_folder import Run, curve_row, lock_folder, state_to_resume
from SRCSMSegmenterLib.errors import BundleError

OLD = {
    "configuration": {"seed": 1, "data": {"folds": 5, "cases": ["*"]}, "note": "x" * 100},
    "set of cases": [["a"], []],
    "naming of labels": {"liver": 1, "spleen": 2},
    "content of cases": {"a": "5 bytes, labels " + "0" * 64},
}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "configuration",
            {"seed": 2, "data": {"folds": 5, "cases": ["*"]}},
            "seed is 2, was 1; note is",
        ),
        (
            "configuration",
            OLD["configuration"] | {"data": {}},
            "data.folds is",
        ),
        ("set of cases", [["b"], []], "another set of cases (set of cases is"),
        (
            "naming of labels",
            {"spleen": 1, "liver": 2},
            "naming of labels.liver is 2, was 1",
        ),
        (
            "content of cases",
            {"a": "5 bytes, labels 1"},
            "another content of cases",
        ),
    ],
)
def test_a_checkpoint_says_what_is_not_the_same(tmp_path, key, value, told):
    empty = {part: {} for part in ("network", "average", "optimiser", "scaler", "best", "progress")}
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", {"identity": OLD, **empty})
    assert state_to_resume(tmp_path, OLD) is not None
    with pytest.raises(CheckpointError) as caught:
        state_to_resume(tmp_path, OLD | {key: value})
    assert told in str(caught.value)


def test_a_model_that_cannot_be_written_is_a_result_that_cannot_be_written(tmp_path):
    def save(folder):
        raise BundleError("Cannot write the model folder.")

    accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
    computing = SimpleNamespace(main=True, accelerator=accelerator)
    run = Run(tmp_path, None, computing, {}, [], print, None)
    with pytest.raises(CheckpointError, match="Cannot write the model") as error:
        run.end(Progress(6, 1.0, finished=True), tmp_path / "model", save)
    assert exit_code(error.value) == 6


def test_curve_rows_leave_dice_open_between_validations():
    row = {"step": 50, "loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0, "seconds": 0.1}
    assert curve_row(row, ["liver"])["dice_liver"] == ""
    assert curve_row(row, ["liver"])["dice"] == ""
    scored = curve_row(row | {"dice": [0.5, math.nan, 0.25]}, ["liver", "spleen", "aorta"])
    assert scored["dice"] == 0.375
    assert scored["dice_aorta"] == 0.25


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path):
    script = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('locked', flush=True); input()"
    )
    command = [sys.executable, "-c", script, tmp_path / ".lock"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(CheckpointError, match="Another process trains in"):
            lock_folder(tmp_path)
        other.communicate("\n")
    assert lock_folder(tmp_path) is not None


def test_a_process_may_open_its_own_folder_again(tmp_path):
    first = lock_folder(tmp_path / "run")
    assert lock_folder(tmp_path / "run") is first


def test_without_locks_on_the_disk_a_training_runs_unguarded():
    assert lock_folder(Path("/dev/null/run")) is None
