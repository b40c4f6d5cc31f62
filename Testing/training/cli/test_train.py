# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm train`` and of the style stages that need no training."""

import pytest

from srcsm_training.cli import main as cli


def run(*arguments):
    return cli.main([*map(str, arguments)])


def test_the_keys_of_a_preset_are_explained_without_any_dataset(capsys):
    assert run("train", "--preset", "abdomen-fast", "--help-config", "optimisation.batch") == 0
    assert capsys.readouterr().out == (
        "optimisation.batch = 4\n"
        "    Samples of a forward pass and process. At least 1. Paper: 1 (ICM: 64).\n"
    )
    assert run("train", "--help-config") == 0
    text = capsys.readouterr().out
    assert "\noptimisation.batch = 1\n" in text  # the paper's, if no preset is named
    assert "\nregions.share = 0\n" in text


def test_a_key_that_does_not_exist_is_no_help(capsys):
    assert run("train", "--help-config", "batch") == 2
    assert "did you mean optimisation.batch" in capsys.readouterr().err


def test_a_small_sam_and_a_fine_tuning_explain_keys_of_their_own(capsys):
    assert run("train-sam", "--help-config", "tiles.rotation") == 0
    assert capsys.readouterr().out == (
        "tiles.rotation = 0.35\n    Largest angle in the slice and out of it. At least 0, in rad.\n"
    )
    assert run("train-sam", "--sam", "any", "--help-config", "theta1") == 0
    assert capsys.readouterr().out.startswith("theta1 = 0.75\n")
    assert run("train-sam", "--out", "folder") == 2
    assert "needs --data" in capsys.readouterr().err


def test_style_stages_explain_their_keys_without_their_other_options(capsys):
    with pytest.raises(SystemExit) as ended:
        run("style", "tune", "--help-config", "tune.lora")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("tune.lora = 0\n    Rank of low-rank updates")
    with pytest.raises(SystemExit) as ended:
        run("style", "tune", "--help-config", "lora")
    assert ended.value.code == 2
    assert "tune.lora" in capsys.readouterr().err
