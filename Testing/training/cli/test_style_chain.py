# SPDX-License-Identifier: Apache-2.0
"""The style stages as a chain: one command for all, and what is said to come next."""

import argparse
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import style_tiny
import tiny
import yaml

from srcsm_training.cli import main as cli
from srcsm_training.cli import style_chain
from srcsm_training.cli.style_chain import next_command
from srcsm_training.style.slices import read_slices


@pytest.fixture(autouse=True)
def _offline(monkeypatch, fresh_accelerator):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def configuration(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(style_tiny.SETTINGS))
    return path


def run(*arguments):
    tiny.forget_accelerator()
    return cli.main([str(argument) for argument in arguments])


def test_one_command_runs_all_stages_and_goes_on_where_it_stopped(tmp_path, configuration, capsys):
    data, out = tiny.write_dataset(tmp_path / "Dataset001_Tiny", 2), tmp_path / "style"
    chain = ("style", "run", "--config", configuration, "--data", data, "--out", out)
    assert run(*chain, "--device", "cpu", "--max-minutes", "0") == 0
    assert "same command resumes" in capsys.readouterr().err
    assert run(*chain, "--device", "cpu") == 0
    printed = capsys.readouterr()
    styled = out / "slices" / "styled" / "abdomen"
    assert printed.out == f"{styled}\n"
    assert read_slices(styled).slices
    assert (styled / "contact_sheet.png").exists()
    stages = ["prepare", "phantom", "base", "tune", "control", "swap", "check"]
    said = printed.err.splitlines()
    assert [line[:-1] for line in said if line[:-1] in stages] == stages
    assert "Slicing across one direction of the patient, the voxel axis K in 2 cases." in said
    assert any(line.startswith(f"Look at {styled / 'contact_sheet.png'}") for line in said)


@pytest.mark.parametrize(
    ("prompts", "preset"), [("abdomen", "icm"), ("chest", "icm-chest"), ("my-own", "icm")]
)
def test_the_training_that_follows_has_the_folders_and_the_preset(prompts, preset, monkeypatch):
    checked = SimpleNamespace(name="Dataset001_Tiny", kept=lambda: ("a picture",))
    monkeypatch.setattr("srcsm_training.style.slices.read_manifest", lambda folder: checked)
    styled = Path("my style/styled") / prompts
    look, following = style_chain._training(styled, styled, Path("my data/A")).splitlines()
    assert look == f"Look at {styled / 'contact_sheet.png'}."
    words = shlex.split(following.removeprefix("Next: "))
    arguments = cli.make_parser().parse_args(words[1:])
    assert (arguments.data, arguments.preset) == (Path("my data/A"), preset)
    assert arguments.set == [f"pairs.styled=[{styled}]"]
    assert "--data Dataset001_Tiny " in style_chain._training(styled, styled)
    checked.kept = lambda: ()
    assert "no picture was kept" in style_chain._training(styled, styled)
    assert "Next" not in style_chain._training(styled, styled)


def test_a_base_that_is_not_here_is_told_before_anything_is_computed(
    tmp_path, configuration, capsys
):
    data, out = tiny.write_dataset(tmp_path / "Dataset001_Tiny", 1), tmp_path / "style"
    chain = ("style", "run", "--config", configuration, "--data", data, "--out", out)
    assert run(*chain, "--base", "nobody/no-base") == 4
    assert "not on this machine" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("action", ["prepare", "phantom", "base", "tune", "control", "swap"])
def test_what_comes_next_can_be_pasted_with_configuration_base_and_folders(action):
    given = argparse.Namespace(
        action=action,
        config=Path("my configs/tiny.yaml"),
        set=["size=96"],
        slices=[Path("a/phantom"), Path("a/ct")] if action == "base" else Path("a/ct"),
        base="bases/tiny",
    )
    words = shlex.split(next_command(given, Path("runs/out")).removeprefix("Next: "))
    arguments = cli.make_parser().parse_args(words[1:])
    assert arguments.config == Path("my configs/tiny.yaml")
    assert arguments.set == ["size=96"]
    following = {"prepare": "tune", "phantom": "base", "base": "tune", "tune": "control"}
    assert arguments.action == {**following, "control": "swap", "swap": "check"}[action]
    if action in ("tune", "control"):
        assert (arguments.base, arguments.slices) == ("bases/tiny", Path("a/ct"))
    if action == "base":
        assert (arguments.base, arguments.slices) == (str(Path("runs/out")), Path("a/ct"))
