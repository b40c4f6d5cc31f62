# SPDX-License-Identifier: Apache-2.0
"""Trainings of an ablation: which are run, in which process, and the row of a table."""

from types import SimpleNamespace

import pandas as pd
import pytest
import tiny

from srcsm_training.data.dataset import Dataset
from srcsm_training.experiments import trainings
from srcsm_training.experiments.trainings import Run, run_missing, score_row
from SRCSMSegmenterLib.errors import DatasetError

RUNS = tuple(Run(name, "preset", "CT", "off", ("MR",)) for name in ("a", "b", "c"))


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "results").mkdir()
    return SimpleNamespace(
        runs=tmp_path / "runs", results=tmp_path / "results", force=False, jobs=2, steps=7
    )


@pytest.fixture
def launched(monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        return SimpleNamespace(returncode=3 if "b" in command else 0)

    monkeypatch.setattr(trainings.subprocess, "run", run)
    return commands


def test_several_trainings_are_processes_of_their_own(arguments, launched, tmp_path):
    (arguments.results / "a.csv").touch()
    assert run_missing(RUNS, arguments, tmp_path, "module", ("--domain", "real")) == 3
    assert sorted(command[command.index("--only") + 1] for command in launched) == ["b", "c"]
    for command in launched:
        assert command[1:5] == ["-m", "module", "--domain", "real"]
        assert command[command.index("--results") + 1] == str(arguments.results)
        assert "--force" not in command


def test_a_single_training_runs_here_and_again_only_if_forced(
    arguments, launched, tmp_path, monkeypatch, capsys
):
    executed = []
    monkeypatch.setattr(trainings, "execute", lambda run, data, given: executed.append(run.name))
    assert run_missing(RUNS[:1], arguments, tmp_path, "module") == 0
    (arguments.results / "a.csv").touch()
    assert run_missing(RUNS[:1], arguments, tmp_path, "module") == 0
    assert executed == ["a"]
    assert "run again with --force" in capsys.readouterr().out
    arguments.force = True
    assert run_missing(RUNS[:1], arguments, tmp_path, "module") == 0
    assert executed == ["a", "a"]
    assert not launched
    run_missing(RUNS[:2], arguments, tmp_path, "module")
    assert all("--force" in command for command in launched)


def test_a_row_has_the_means_of_one_setting_or_dashes():
    table = pd.DataFrame(
        {
            "label": ["x", "x", "y", "x"],
            "source_matching": ["on", "on", "on", "off"],
            "dice": [0.5, 0.7, 0.9, 0.1],
            "assd": [1.0, 3.0, 4.0, 9.0],
        }
    )
    assert score_row("T", "on", table, ("x", "y")) == "| T | on | 0.600 | 0.900 | 0.750 | 3.0 |"
    assert score_row("T", "on", None, ("x", "y")) == "| T | on | – | – | – | – |"


def test_targets_with_other_labels_are_refused_before_any_training(tmp_path, arguments):
    for name in ("CT", "MR"):
        tiny.write_dataset(tmp_path / name, 1, name)
    description = tmp_path / "MR" / "dataset.json"
    description.write_text(description.read_text().replace("spleen", "aorta"))
    with pytest.raises(DatasetError, match=r"2 spleen.*2 aorta"):
        trainings.execute(RUNS[0], tmp_path, arguments)
    assert not arguments.runs.exists()


def test_targets_that_number_their_labels_otherwise_get_a_label_map(tmp_path, capsys):
    source = Dataset(tmp_path, "CT", "CT", {"liver": 1, "spleen": 2}, ())
    target = Dataset(tmp_path, "MR", "MR", {"spleen": 1, "liver": 2}, ())
    assert trainings._label_maps(RUNS[0], source, [source, target]) == {
        "CT": None,
        "MR": {1: 2, 2: 1},
    }
    assert "CT on MR, labels matched by name" in capsys.readouterr().out
