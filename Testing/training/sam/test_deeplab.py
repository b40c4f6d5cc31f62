# SPDX-License-Identifier: Apache-2.0
"""The paper's coarse network: its loss, its weights from a file, and from training to boxes."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from srcsm_training.engine.config import CasesConfig, Recipe
from srcsm_training.engine.limits import Limits
from SRCSMSegmenterLib.errors import BundleError, ConfigError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

pytest.importorskip("torchvision")

from srcsm_training.cli.deeplab import main
from srcsm_training.sam import deeplab

CONFIG = deeplab.DeepLabConfig(
    data=CasesConfig(folds=3),
    size=32,
    optimisation=Recipe(steps=2, batch=2, learning_rate=1e-3, l2=0.0, ema=0.0, precision="fp32"),
    validate_every=0,
)


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_from_training_to_a_label_map_with_confidence(tmp_path, folder):
    def a_run(out, steps, stop=lambda: False):
        tiny.forget_accelerator()
        config = replace(CONFIG, optimisation=replace(CONFIG.optimisation, steps=steps))
        limits = Limits(stop_requested=stop, say=lambda line: None)
        return deeplab.run_training(folder, config, out, device="cpu", limits=limits)

    stops = iter((True,))
    stopped = a_run(tmp_path / "run", 2, lambda: next(stops))
    assert (stopped.steps, stopped.model) == (1, None)
    result = a_run(tmp_path / "run", 2)
    assert result.finished
    coarse = deeplab.load(result.model, "cpu")
    assert coarse.labels == {"liver": 1, "spleen": 2}
    assert (coarse.size, coarse.modality) == (32, "CT")
    assert coarse.network.training is False

    scan, organs, sure = (
        folder / "imagesTr" / "a_0000.nii.gz",
        *(tmp_path / name for name in ("organs.nii.gz", "sure.nii.gz")),
    )
    arguments = ["predict", str(scan), "--model", str(result.model), "-o", str(organs)]
    arguments += ["--confidence", str(sure), "--modality", "CT", "--device", "cpu"]
    assert main("", arguments) == 0
    labels, confidence = read_labels(organs).array, read_volume(sure).array
    found = deeplab.predict(read_volume(scan), coarse, "CT").astype(np.float32)
    assert found.shape == (2, *tiny.SHAPE)
    assert (labels[found.max(0) < 0.5] == 0).all()
    chosen = labels > 0
    assert (labels[chosen] == found.argmax(0)[chosen] + 1).all()
    np.testing.assert_allclose(confidence[chosen], found.max(0)[chosen], atol=1e-3)
    np.testing.assert_allclose(confidence[~chosen], 1 - found.max(0)[~chosen], atol=1e-3)


def test_the_loss_by_hand():
    labels = torch.tensor([[[0, 1], [2, 2]]])
    perfect = torch.tensor([[[[-50.0, 50.0], [-50, -50]], [[-50, -50], [50, 50]]]])
    assert float(deeplab.coarse_loss(perfect, labels)) < 1e-6
    # All logits 0: p = 1/2. Dice 1 - 2 (n / 2) / (4 / 4 + n) with n = 1, 2; CE log 3; BCE log 2.
    dice = ((1 - 1 / 2) + (1 - 2 / 3)) / 2
    expected = dice + np.log(3) + np.log(2)
    assert float(deeplab.coarse_loss(torch.zeros(1, 2, 2, 2), labels)) == pytest.approx(expected)
    nothing = deeplab.coarse_loss(torch.full((1, 2, 2, 2), -50.0), torch.zeros(1, 2, 2).long())
    assert float(nothing) < 1e-6


def test_slices_keep_their_place(folder):
    """Slices across the slice axis, in order, with rows and columns of the array."""
    from srcsm_training.data.dataset import read_dataset

    case = read_dataset(folder).cases[0]
    slices = deeplab.read_slices(case, "CT")
    assert slices.pixels.shape == tiny.SHAPE  # K is the slice axis
    assert torch.equal(slices.labels, torch.from_numpy(read_labels(case.labels).array).byte())
    image, labels = deeplab.scaled(slices, 9, 44)
    assert image.shape == (3, 44, 44)
    assert torch.equal(image[0], image[2])
    true = slices.labels[9].repeat_interleave(2, 0)
    assert (labels[:, ::11] == true[:, ::5].long()).float().mean() > 0.9
    assert 0 <= float(image.min()) < float(image.max()) <= 1.01


def test_the_backbone_comes_from_a_file(tmp_path):
    torch.manual_seed(1)
    other = deeplab.build(3).backbone.state_dict()
    path = tmp_path / "resnet50.pth"
    torch.save({**other, "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, path)
    network = deeplab.build(2, path)
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, other[name])
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(BundleError, match="resnet50"):
        deeplab.build(2, path)
    path.write_bytes(b"no weights")
    with pytest.raises(BundleError, match="resnet50"):
        deeplab.build(2, path)


def test_a_file_of_something_else_is_refused(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(BundleError, match="no DeepLab"):
        deeplab.load(path, "cpu")
    volume = Volume(np.zeros((2, 3, 4), np.int16), Geometry((4, 3, 2), np.eye(4)))
    from SRCSMSegmenterLib.volume_io import write_volume

    write_volume(tmp_path / "scan.nii.gz", volume)
    arguments = ["predict", str(tmp_path / "scan.nii.gz"), "--model", str(path)]
    assert main("", [*arguments, "-o", str(tmp_path / "o.nii.gz"), "--device", "cpu"]) == 4
    assert "no DeepLab" in capsys.readouterr().err


def test_a_batch_of_one_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        deeplab.DeepLabConfig(optimisation=Recipe(batch=1))


def test_every_key_is_explained(capsys):
    assert main("", ["train", "--help-config"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("data.folds", "size", "optimisation.batch", "seed"))
    assert main("", ["train", "--set", "size=256", "--help-config", "size"]) == 0
    assert "size = 256" in capsys.readouterr().out
    assert main("", ["train", "--help-config", "siez"]) == 2
    assert "did you mean size" in capsys.readouterr().err
    assert main("", ["train", "--out", "run"]) == 2
    assert "--data" in capsys.readouterr().err


def test_the_script_finds_its_package():
    """Run as a file, its folder must not shadow other packages."""
    import subprocess

    script = Path(deeplab.__file__)
    result = subprocess.run(
        [sys.executable, str(script), "train", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "--backbone" in result.stdout
