# SPDX-License-Identifier: Apache-2.0
"""Packed datasets: the same batches without the scans, and no training on damaged files."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from checkpoints import assert_same, last, stop_after

from srcsm_training.cli import main as cli
from srcsm_training.data.packed import SUFFIX, on_coarser_grid, pack, read_packed, to_bytes
from srcsm_training.engine.checkpoint import CheckpointError
from srcsm_training.engine.config import with_overrides
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.source_domain import intensity_rule, open_source
from srcsm_training.segmentation import run
from srcsm_training.segmentation.run import run_training
from srcsm_training.segmentation.training import draw_batch
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import load_bundle

CONFIG = tiny.config()
RULE = IntensityRule("CT")


@pytest.fixture
def write(tmp_path, folder, cache):
    """Pack the tiny dataset on a grid and write it."""

    def write(grid=None):
        source = open_source(folder, CONFIG.data, check=False)
        packed = pack(source.dataset, intensity_rule(CONFIG.data, source), 1.0, cache, grid)
        path = tmp_path / f"{packed.dataset.name}{SUFFIX}"
        path.write_bytes(to_bytes(packed))
        return path

    return write


def batches(path, cache, config=CONFIG):
    """The images and labels of three batches of a training."""
    source = open_source(path, config.data, check=False)
    rule = intensity_rule(config.data, source)
    cases = source.prepared(rule, config.data.smoothing, config.grid, cache, (0, 2, 1), 2)
    generator = torch.Generator().manual_seed(3)
    return [draw_batch(cases, config, rule, generator, torch.device("cpu")) for _ in range(3)]


def test_batches_are_to_the_bit_those_of_the_folder(write, folder, cache, tmp_path):
    pairs = zip(batches(folder, cache), batches(write(), tmp_path / "no such folder"), strict=True)
    for (images, labels), (same_images, same_labels) in pairs:
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert not (tmp_path / "no such folder").exists()


def test_what_else_a_training_reads_is_that_of_the_folder(write, folder):
    scans, packed = (open_source(path, CONFIG.data, check=False) for path in (folder, write()))
    assert packed.contents() == scans.contents()
    assert [case.name for case in packed.cases] == [case.name for case in scans.cases]
    assert packed.dataset.name == "Dataset001_Tiny"
    assert packed.dataset.labels == {"liver": 1, "spleen": 2}
    assert packed.modality == "CT"
    assert packed.histogram(RULE).to_dict() == scans.histogram(RULE).to_dict()
    assert intensity_rule(CONFIG.data, packed) == intensity_rule(CONFIG.data, scans) == RULE


def test_a_coarser_grid_keeps_the_faces_and_the_windows(write, folder, cache):
    path = write(GridSpec((1, 1, 1), (5.0, 2.0, 6.0)))
    (fine, labels), (coarse, coarse_labels) = (batches(place, cache)[0] for place in (folder, path))
    assert not torch.equal(fine, coarse)
    assert float((fine - coarse).abs().mean()) < 0.06
    assert float((labels != coarse_labels).float().mean()) < 0.1
    tensors = read_packed(path).tensors["a"]
    assert tensors["image"].shape == (12, 22, 10)  # from (24, 22, 20) voxels of 3, 2 and 2.5 mm
    own, new = (
        Geometry(shape, affine)
        for shape, affine in (
            (tiny.SHAPE[::-1], tiny.AFFINE),
            ((10, 22, 12), tensors["affine"].numpy()),
        )
    )
    for corner in (-0.5, 0.5):
        ends = [g.to_ras(np.where(corner < 0, -0.5, np.array(g.size) - 0.5)) for g in (own, new)]
        np.testing.assert_allclose(*ends, atol=1e-9)
    scans = open_source(folder, CONFIG.data, check=False).contents()
    contents = open_source(path, CONFIG.data).contents()
    assert contents["a"] == f"{scans['a']}, in [10, 22, 12] voxels"


def test_a_ramp_keeps_its_values_on_a_coarser_grid():
    ramp = torch.arange(12.0).half().expand(4, 6, 12).contiguous()
    tensors = {
        "image": ramp,
        "labels": (ramp > 5).to(torch.uint8),
        "affine": torch.eye(4, dtype=torch.float64),
    }
    coarse = on_coarser_grid(tensors, GridSpec((1, 1, 1), (3.0, 1.0, 0.5)))
    assert coarse["image"][0, 0].tolist() == [1, 4, 7, 10]
    assert coarse["labels"][0, 0].tolist() == [0, 0, 1, 1]
    assert coarse["image"].dtype == torch.float16
    assert coarse["labels"].dtype == torch.uint8
    assert on_coarser_grid(tensors, GridSpec((1, 1, 1), (1.0, 1.0, 1.0))) is tensors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.window=[-100, 200]", r"data\.window is \(-100.*prepared with \(-1023"),
        ("data.smoothing=0", r"data\.smoothing is 0.*prepared with 1\.0"),
        ("data.modality=MR", r"data\.modality is MR.*prepared with CT"),
    ],
)
def test_a_training_that_prepares_its_cases_otherwise_is_refused(write, override, message):
    data = with_overrides(CONFIG, [override]).data
    with pytest.raises(ConfigError, match=message):
        intensity_rule(data, open_source(write(), data))


def test_what_reads_scans_says_that_there_are_none(write, folder):
    open_source(folder, CONFIG.data, check=False).require_scans("Fine-tuning")
    with pytest.raises(ConfigError, match=r"Fine-tuning needs the scans.*the dataset's folder"):
        open_source(write(), CONFIG.data).require_scans("Fine-tuning")


def train(data, out, cache, **limits):
    tiny.forget_accelerator()
    silent = Limits(say=lambda line: None, **limits)
    return run_training(data, CONFIG, out, device="cpu", cache=cache, limits=silent)


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_training_goes_on_from_the_file_to_the_same_bits(
    write, folder, cache, tmp_path, monkeypatch
):
    for pictures in ("_preview_training", "_preview_validation"):
        monkeypatch.setattr(run, pictures, lambda *_: None)
    path, parts = write(), tmp_path / "parts"
    train(folder, tmp_path / "whole", cache)
    train(folder, parts, cache, stop_requested=stop_after(3))
    assert train(path, parts, None).finished
    assert_same(last(tmp_path / "whole"), last(parts))
    whole, other = (load_bundle(tmp_path / name / "model") for name in ("whole", "parts"))
    assert_same(whole.weights, other.weights)
    assert other.histogram.to_dict() == whole.histogram.to_dict()
    assert other.offsets == whole.offsets
    with pytest.raises(CheckpointError, match="another content of cases"):
        train(write(GridSpec((1, 1, 1), (5.0, 2.0, 6.0))), parts, None)


def test_damaged_files_are_refused(write, tmp_path):
    path = write()
    content = path.read_bytes()
    for damaged in (
        b"",
        content[:-30],
        content[:200] + b"?" + content[201:],
        gzip.compress(b"something else"),
        gzip.compress(gzip.decompress(content)[:-4]),
        gzip.compress(gzip.decompress(content).replace(b"a/image", b"a/imagf")),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"Dataset001_Tiny.*pack it again"):
            read_packed(path)
    with pytest.raises(DatasetError, match="does not exist"):
        read_packed(tmp_path / f"absent{SUFFIX}")


def test_the_command_packs_or_refuses_what_is_too_large(tmp_path, folder, cache, capsys):
    command = ["pack-data", "--data", str(folder), "--preset", "abdomen-tiny"]
    command += ["--cache", str(cache), "--out", str(tmp_path / "packed")]
    assert cli.main([*command, "--max-mib", "0.001"]) == 2
    assert "more than --max-mib 0.001; nothing was written" in capsys.readouterr().err
    assert not list((tmp_path / "packed").iterdir())
    assert cli.main(command) == 0
    path = tmp_path / "packed" / f"Dataset001_Tiny{SUFFIX}"
    assert capsys.readouterr().out == f"{path}: 3 cases, {path.stat().st_size / 2**20:.1f} MiB\n"
    again = replace(read_packed(path).dataset, cases=())
    assert again.labels == {"liver": 1, "spleen": 2}
