# SPDX-License-Identifier: Apache-2.0
"""``srcsm style``: every stage is one command, from scans to restyled slices."""

import signal

import pytest
import style_tiny
import tiny
import torch
import yaml

from srcsm_training.cli import main as cli
from srcsm_training.cli import style as style_command
from srcsm_training.style.slices import StageResult, read_manifest, read_slices

STAGES = ("prepare", "phantom", "base", "tune", "control", "swap", "run")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, fresh_accelerator):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(*arguments):
    tiny.forget_accelerator()
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def configuration(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(style_tiny.SETTINGS))
    return path


def test_the_whole_chain_runs_from_scans_to_restyled_slices(tmp_path, configuration, capsys):
    data = tiny.write_dataset(tmp_path / "Dataset001_Tiny")
    slices, phantom, base = (tmp_path / name for name in ("ct", "phantom", "base"))
    tuned, control = tmp_path / "tuned", tmp_path / "control"
    given = ("--config", configuration, "--out")
    on = ("--device", "cpu")
    taught = ("--slices", slices, "--base", base, *on)
    assert run("style", "prepare", "--data", data, *given, slices) == 0
    assert run("style", "phantom", *given, phantom) == 0
    assert run("style", "base", "--slices", phantom, slices, *on, *given, base) == 0
    assert run("style", "tune", *taught, *given, tuned) == 0
    assert run("style", "control", *taught, "--tuned", tuned, *given, control) == 0
    capsys.readouterr()
    swap = ("style", "swap", *taught, "--control", control, "--config", configuration)
    assert run(*swap, "--set", "swap.batch=10", "--max-minutes", "0") == 0
    assert "Stopped by --max-minutes at 0 of 24" in capsys.readouterr().err
    assert run(*swap) == 0
    out = slices / "styled" / "abdomen"
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "its licence: terms of the slices" in printed.err
    assert len(read_slices(out).slices) == 24
    assert yaml.safe_load((tuned / "config.yaml").read_text("utf-8"))["tune"]["steps"] == 4

    again = tmp_path / "again"
    for stage, expected in (
        (("base", "--slices", phantom, slices, *on), ("autoencoder: about ", "denoiser: about ")),
        (("tune", *taught), ("tune: about ", "(4 x ")),
        (("control", *taught, "--tuned", tuned), ("control: about ",)),
        (("swap", *taught, "--control", control), ("swap: about ", "(24 x ")),
    ):
        assert run("style", *stage, "--dry-run", *given, again) == 0
        printed = capsys.readouterr().out
        assert all(words in printed for words in ("# memory: about ", *expected)), printed
    assert not again.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_itself_with_examples_that_parse(capsys, stage):
    with pytest.raises(SystemExit) as ended:
        run("style", stage, "--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out.replace("\\\n", " ")
    assert f"examples:\n  srcsm style {stage}" in text
    for line in text.splitlines():
        if line.startswith("  srcsm "):
            assert cli.make_parser().parse_args(line.split()[1:]).action == stage


def test_help_names_the_default_base():
    arguments = cli.make_parser().parse_args(["style", "tune", "--slices", "s", "--out", "o"])
    assert arguments.base == "Nihirc/Prompt2MedImage"
    assert not arguments.download


def test_a_dry_run_prints_the_configuration_and_writes_nothing(tmp_path, configuration, capsys):
    given = ("--config", configuration, "--set", "tune.lora=4", "--out", tmp_path / "out")
    assert run("style", "tune", "--slices", tmp_path, *given, "--dry-run") == 0
    out, err = capsys.readouterr()
    printed = yaml.safe_load(out)
    assert printed["size"] == 32
    assert printed["tune"]["lora"] == 4
    assert "The time cannot be estimated" in err
    assert "has no manifest.json" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--set", "tune.stepz=2"), 2, "did you mean steps?"),
        (("--set", "tune.precision=fp8"), 2, "precision is one of"),
        (("--set", "tune.steps=0"), 2, "at least 1"),
        (("--set", "tune.precision=fp16"), 2, "fp16 needs a GPU"),
        ((), 3, "has no manifest.json"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_sentence(
    tmp_path, configuration, capsys, arguments, code, words
):
    given = ("--config", configuration, "--out", tmp_path / "out", "--device", "cpu", *arguments)
    assert run("style", "tune", "--slices", tmp_path, *given) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_a_base_that_is_not_here_is_not_fetched(tmp_path, configuration, capsys, monkeypatch):
    data = tiny.write_dataset(tmp_path / "Dataset001_Tiny")
    run("style", "prepare", "--data", data, "--config", configuration, "--out", tmp_path / "ct")
    capsys.readouterr()
    given = ("--config", configuration, "--out", tmp_path / "out", "--device", "cpu")
    assert run("style", "tune", "--slices", tmp_path / "ct", *given, "--base", "some/base") == 4
    assert "some/base is not on this machine" in capsys.readouterr().err


def test_a_signal_stops_cleanly_with_an_exit_code_of_its_own(
    tmp_path, configuration, capsys, monkeypatch
):
    def stage(call):
        signal.raise_signal(signal.SIGINT)
        assert call.limits.stop_requested()
        return StageResult(3, 8, None)

    monkeypatch.setitem(style_command.STAGES, "phantom", stage)
    assert run("style", "phantom", "--config", configuration, "--out", tmp_path / "p") == 130
    assert "Stopped at 3 of 8; the results so far are kept" in capsys.readouterr().err


def test_too_little_memory_is_answered_with_what_to_do(
    tmp_path, configuration, capsys, monkeypatch
):
    def stage(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(style_command.STAGES, "tune", stage)
    given = ("--config", configuration, "--out", tmp_path / "p")
    assert run("style", "tune", "--slices", tmp_path, *given) == 5
    assert "gradient_checkpointing" in capsys.readouterr().err


def test_prepare_stops_in_time_and_goes_on(tmp_path, configuration, capsys):
    data = tiny.write_dataset(tmp_path / "Dataset001_Tiny")
    given = ("--data", data, "--config", configuration, "--out", tmp_path / "ct")
    assert run("style", "prepare", *given, "--max-minutes", "0") == 0
    assert "Stopped by --max-minutes at 0 of 3" in capsys.readouterr().err
    assert run("style", "prepare", *given) == 0
    assert read_manifest(tmp_path / "ct").complete
