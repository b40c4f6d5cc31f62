# SPDX-License-Identifier: Apache-2.0
"""Processes on CPUs: which ones are started, and that a training then runs on all of them."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from srcsm_training.engine import processes
from srcsm_training.engine.config import write_yaml
from SRCSMSegmenterLib.errors import ConfigError

TRAIN = Path(__file__).resolve().parents[3] / "training" / "train.py"


@pytest.fixture
def started(monkeypatch):
    """The environments of the processes that would be started."""
    others = []

    def start(command, env):
        assert command == sys.orig_argv
        others.append(env)
        return SimpleNamespace()

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr(processes.atexit, "register", lambda *_: None)
    environment = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500", "PATH": "/bin"}
    monkeypatch.setattr(processes.os, "environ", environment)
    return others


def launched_by(monkeypatch, *command):
    parents = [SimpleNamespace(cmdline=lambda: list(command)), SimpleNamespace(cmdline=lambda: [])]
    stand_in = SimpleNamespace(parents=lambda: parents[::-1])
    monkeypatch.setattr("psutil.Process", lambda: stand_in)


RANKED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    "launch",
    [
        ("python", "/venv/bin/accelerate", "launch"),
        ("python", "-m", "accelerate.commands.launch"),
        ("python", "/venv/bin/accelerate-launch"),
    ],
)
def test_the_first_process_starts_the_others_of_its_machine(monkeypatch, started, launch):
    launched_by(monkeypatch, *launch, "--cpu", "--num_processes", "3", "train.py", "--out", "a b")
    processes.start_other_processes()
    own = processes.os.environ
    assert [own[name] for name in RANKED] == ["0", "0", "3", "3"]
    assert [[other[name] for name in RANKED] for other in started] == [
        ["1", "1", "3", "3"],
        ["2", "2", "3", "3"],
    ]
    assert all(other["PATH"] == "/bin" for other in started)
    assert own["MASTER_PORT"] == started[0]["MASTER_PORT"] != "29500"  # one that is free
    processes.start_other_processes()  # it has its rank now
    assert len(started) == 2


def test_machines_number_their_processes_one_after_the_other(monkeypatch, started):
    options = ("--cpu", "--num_processes", "4", "--num_machines", "2", "--machine_rank", "1")
    launched_by(monkeypatch, "python", "/bin/accelerate", "launch", *options, "train.py")
    processes.start_other_processes()
    assert [processes.os.environ[name] for name in RANKED] == ["2", "0", "4", "2"]
    assert [[other[name] for name in RANKED] for other in started] == [["3", "1", "4", "2"]]
    assert processes.os.environ["MASTER_PORT"] == "29500"  # all machines know it


@pytest.mark.parametrize(
    "changes", [{"LOCAL_RANK": "0"}, {"ACCELERATE_USE_CPU": "false"}, {"MASTER_PORT": None}]
)
def test_nothing_is_started_where_others_start_the_processes(monkeypatch, started, changes):
    for name, value in changes.items():
        processes.os.environ.pop(name, None)
        if value:
            processes.os.environ[name] = value
    processes.start_other_processes()
    assert started == []


def test_a_number_of_processes_that_is_not_known_is_not_taken_for_one(monkeypatch, started):
    launched_by(monkeypatch, "bash")
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node"):
        processes.start_other_processes()


@pytest.mark.slow
def test_accelerate_trains_on_two_processes_of_the_cpu(tmp_path, folder):
    write_yaml(tmp_path / "tiny.yaml", tiny.config(steps=2))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    options = ["--data", folder, "--preset", "abdomen-fast", "--config", tmp_path / "tiny.yaml"]
    options += ["--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    done = subprocess.run([*command, TRAIN, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(2 processes)") == 1
    environment = json.loads((tmp_path / "run" / "environment.json").read_text("utf-8"))
    assert environment["processes"] == 2
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert done.stdout.count("Trained 2 steps") == 1
