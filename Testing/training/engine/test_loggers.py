# SPDX-License-Identifier: Apache-2.0
"""Loggers: what TensorBoard, W&B and MLflow are given."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from accelerate import Accelerator
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srcsm_training.engine.accelerator import Computing
from srcsm_training.engine.loggers import check_logger, open_logger
from srcsm_training.engine.progress import Progress
from srcsm_training.engine.run_folder import open_run
from srcsm_training.plots import save
from SRCSMSegmenterLib.errors import ConfigError

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROW = {"step": 3, "loss": 0.75, "loss_dice": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0}
ROW |= {"seconds": 0.1, "dice": [0.5, 0.7]}


@pytest.fixture
def run(tmp_path):
    computing = Computing(Accelerator(cpu=True), "asked for")
    return open_run(
        tmp_path / "run",
        tiny.config(),
        computing,
        identity={},
        tell=lambda line: None,
        labels=["liver", "spleen"],
    )


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "worst_000003.png"
    save(Figure(figsize=(1, 1)), path)
    return path


def log_all(run, kind, picture):
    with open_logger(run, kind) as logger:
        logger.log(Progress(3, 2.0, curve=[ROW]))
        logger.log(Progress(4, 2.0, curve=[ROW]))  # a step without a row
        logger.picture(picture, 3)


def test_tensorboard_gets_the_curve_pictures_and_the_configuration(run, picture):
    log_all(run, "tensorboard", picture)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["worst"]
    assert set(tags["scalars"]) >= {"loss", "loss_dice", "learning_rate", "dice_liver", "dice"}
    [event] = events.Scalars("dice")
    assert (event.step, event.value) == (3, pytest.approx(0.6))
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "random_convolution: smoothed" in text


def test_wandb_gets_the_same(run, picture, monkeypatch):
    """A stand-in of the package, which tests cannot reach."""
    logged, about = [], {}
    session = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: None
    )

    def init(**options):
        about.update(options)
        return session

    stand_in = SimpleNamespace(
        init=init,
        config=SimpleNamespace(update=lambda values, **_: about.update(config=values)),
        Image=np.asarray,
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    log_all(run, "wandb", picture)
    (step, values), (_, pictures) = logged
    assert (step, values["loss_dice"], values["dice"]) == (3, 0.5, pytest.approx(0.6))
    assert pictures["worst"][0].shape[-1] == 3
    assert (about["name"], about["resume"]) == ("run", "allow")
    assert about["config"]["optimisation.batch"] == 2
    json.dumps(about["config"])


def test_a_logger_whose_package_is_absent_is_refused(monkeypatch):
    monkeypatch.setattr("srcsm_training.engine.loggers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install mlflow"):
        check_logger("mlflow")
