# SPDX-License-Identifier: Apache-2.0
"""A node without SimpleITK, MONAI and network: slices of trainings, tests and benchmarks."""

import sys
import time
from types import SimpleNamespace

import pytest
import tiny

from srcsm_training.data.packed import SUFFIX, pack, to_bytes
from srcsm_training.engine.config import write_yaml
from srcsm_training.engine.source_domain import intensity_rule, open_source
from srcsm_training.experiments import node
from srcsm_training.experiments.node import main, read_runs, train_all
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.models.bundle import load_bundle

BLOCKED = """
import socket, sys

for name in ("SimpleITK", "monai", "segment_anything", "psutil", "pydicom", "highdicom"):
    sys.modules[name] = None


def refuse(*_):
    raise OSError("no network")


socket.socket.connect = refuse
"""
"""`sitecustomize` of a node: what it lacks cannot be imported, and no address be reached."""


@pytest.fixture
def packed(tmp_path, folder, cache):
    """A folder with a packed dataset of the tiny one."""
    source = open_source(folder, tiny.config().data, check=False)
    rule = intensity_rule(tiny.config().data, source)
    (tmp_path / "packed").mkdir()
    content = to_bytes(pack(source.dataset, rule, 1.0, cache, None))
    (tmp_path / "packed" / f"{source.dataset.name}{SUFFIX}").write_bytes(content)
    return tmp_path / "packed"


@pytest.fixture
def runs(tmp_path):
    """A file of trainings."""

    def write(*lines):
        (tmp_path / "runs.txt").write_text("\n".join(lines))
        return tmp_path / "runs.txt"

    return write


def test_a_training_without_simpleitk_monai_and_network(
    packed, runs, tmp_path, monkeypatch, capsys
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    write_yaml(tmp_path / "tiny.yaml", tiny.config())
    file = runs(
        f"ct train Dataset001_Tiny --preset abdomen-tiny --config {tmp_path / 'tiny.yaml'} "
        "--device cpu --set optimisation.steps=2"
    )
    out = tmp_path / "out"
    command = ["--packed", str(packed), "--runs", str(file), "--minutes", "5", "--out", str(out)]
    assert main([*command, "--only", "trainings"]) == 0
    assert load_bundle(out / "ct" / "model").description.training["steps"] == 2
    assert (out / "ct" / "checkpoints" / "last.pt").is_file()
    assert (out / "ct" / "curve.csv").is_file()
    assert "ct: finished" in capsys.readouterr().out
    assert "Trained 2 steps" in (out / "log.txt").read_text()
    assert main([*command, "--only", "trainings"]) == 0  # nothing is left to do
    assert capsys.readouterr().out == ""


def test_lines_are_trainings(runs):
    first, second = read_runs(
        runs("# two", "", "a train X --set 'data.outputs=[liver, spleen]'  # four", "b train-sam Y")
    )
    assert first == node.Training("a", "train", "X", ("--set", "data.outputs=[liver, spleen]"))
    assert second == node.Training("b", "train-sam", "Y", ())
    for wrong in ("a train", "a segment X", "a train X\na train Y"):
        with pytest.raises(ConfigError, match=r"runs\.txt, line [12]: a training is"):
            read_runs(runs(wrong))


def test_what_is_missing_is_named_before_the_work(packed, runs, tmp_path, monkeypatch, capsys):
    command = ["--packed", str(packed), "--minutes", "1", "--out", str(tmp_path / "out"), "--runs"]
    with pytest.raises(SystemExit) as ended:
        main([*command, str(runs("a train Dataset002"))])
    assert ended.value.code == 2
    assert f"Dataset002{SUFFIX} does not exist" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit):
        main([*command, str(runs("a train Dataset001_Tiny"))])
    assert "lacks the packages scipy; bring them" in capsys.readouterr().err


@pytest.fixture
def commands(monkeypatch):
    """The commands that would run; a training named bad fails, others finish."""
    given = []

    def run(command, **_):
        given.append(command)
        folder = command[command.index("--out") + 1]
        if not folder.endswith("bad"):
            node.Path(folder, "model").mkdir(parents=True)
        return SimpleNamespace(returncode=int(folder.endswith("bad")), stdout="", stderr="")

    monkeypatch.setattr(node.subprocess, "run", run)
    return given


def minutes(command):
    return float(command[command.index("--max-minutes") + 1])


def test_trainings_share_the_time_and_a_failed_one_does_not_stop_the_others(
    commands, tmp_path, monkeypatch
):
    now = time.monotonic()
    monkeypatch.setattr(node.time, "monotonic", lambda: now)
    trainings = [node.Training(name, "train", "X", ()) for name in ("done", "a", "bad", "b")]
    (tmp_path / "done" / "model").mkdir(parents=True)
    lines = []
    arguments = (trainings, tmp_path, tmp_path)
    assert not train_all(*arguments, 1, now + 12 * 60, lines.append)
    assert [minutes(command) for command in commands] == [3.5, 5.5, 11.5]
    assert "bad: exit code 1" in lines
    assert "b: finished" in lines
    commands.clear()
    lines.clear()
    assert train_all(*arguments, 1, now + 20, lines.append)
    assert lines == ["bad: no time left."]
    assert not commands


def test_trainings_side_by_side_get_more_time_each(commands, tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(node.time, "monotonic", lambda: now)
    trainings = [node.Training(name, "train", "X", ()) for name in "abcd"]
    assert train_all(trainings, tmp_path, tmp_path, 4, now + 600, lambda line: None)
    assert sorted(minutes(command) for command in commands) == [9.5] * 4


def test_the_tests_are_those_that_need_a_gpu():
    command = node.tests_command()
    files = [word for word in command if word.endswith(".py")]
    assert command[1:5] == ["-m", "pytest", "-m", "needs_gpu"]
    assert any(file.endswith("test_fit.py") for file in files)
    assert not any(file.endswith("test_packed.py") for file in files)


def test_what_is_printed_is_kept_and_not_repeated(tmp_path):
    path, later = tmp_path / "x.txt", time.monotonic() + 60
    hello = [sys.executable, "-c", "print('hello'); raise SystemExit(3)"]
    assert node.capture(hello, path, later) == "exit code 3"
    assert path.read_text() == "hello\n"
    assert node.capture(hello, path, later) == "there already"
    assert node.capture(hello, tmp_path / "y.txt", time.monotonic()) == "no time left"
    assert not (tmp_path / "y.txt").exists()
