# SPDX-License-Identifier: Apache-2.0
"""Differences of label maps are counted per organ, and the kept piece is told from the best."""

import numpy as np
import pytest
import tiny
import torch

from srcsm_training.experiments import agreement
from srcsm_training.experiments.agreement import Found, differences, in_bfloat16, pieces
from SRCSMSegmenterLib.network import NetworkConfig, UNet


def test_differences_are_in_per_cent_of_the_organ():
    other = np.zeros((2, 5, 10), np.uint8)
    other[0] = 1  # 50 voxels
    one = other.copy()
    one[0, 0, :2] = 2
    assert differences(one, other, [1, 2]) == [4.0, 200.0]
    assert differences(other, other, [1, 3]) == [0.0, 0.0]


def test_the_kept_piece_is_the_surest_and_the_best_is_the_one_in_the_organ():
    labels, truth = np.zeros((2, 4, 10), np.uint8), np.zeros((2, 4, 10), np.uint8)
    labels[0, 0, :6] = truth[0, 0, :8] = 1  # Dice 12 / 14
    labels[1, 3, :4] = 1
    confidence = np.where(labels == 1, 0.6, 1).astype(np.float16)
    confidence[1, 3] = 0.9
    assert pieces(Found(labels, confidence), truth, 1) == (0.0, pytest.approx(12 / 14))
    confidence[0, 0] = 1
    assert pieces(Found(labels, confidence), truth, 1) == (pytest.approx(12 / 14),) * 2


def test_an_organ_that_is_missed_altogether_has_no_better_piece():
    labels, truth = np.zeros((2, 4, 10), np.uint8), np.zeros((2, 4, 10), np.uint8)
    truth[0, 0, 0] = labels[1, 2, 3] = 1
    assert pieces(Found(labels, np.ones(labels.shape, np.float16)), truth, 1) == (0.0, 0.0)


def test_networks_compute_in_bfloat16_within_the_context_alone():
    torch.manual_seed(0)
    network, x = (
        UNet(NetworkConfig(classes=3, channels=(4,), dropout=0.0)),
        torch.randn(1, 1, 4, 6, 8),
    )
    with torch.inference_mode():
        full = network(x)
        with in_bfloat16(True):
            reduced = network(x)
        with in_bfloat16(False):
            assert torch.equal(network(x), full)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, full)
    torch.testing.assert_close(reduced, full, atol=0.1, rtol=0)


def test_both_tables_have_a_row_for_every_network_and_dataset(tmp_path, monkeypatch, capsys):
    for folder, modality in ((agreement.CT, "CT"), (agreement.MR, "MR")):
        tiny.write_dataset(tmp_path / folder, 2, modality)

    def found(model, image, modality, bfloat16=False):
        labels = np.ones(tiny.SHAPE, np.uint8)
        labels[0, 0, : 11 if bfloat16 else 0] = 2
        return Found(labels, np.ones(labels.shape, np.float16))

    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, task, *arguments):
            return self if task is agreement.find else None

        def result(self):
            return found("", "", "")

    monkeypatch.setattr(agreement, "find", found)
    monkeypatch.setattr(agreement, "child_with_avx2", Pool)
    assert agreement.main(["--data", str(tmp_path), "--models", "a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The spleen has 11 voxels here and none there; the liver has 10560.
    assert "| a | CT, 2 | bf16 | 550.05 | 1100.00 | 2 of 4 |" in lines
    assert "| a | MR, 2 | fp32, AVX2 alone | 0.00 | 0.00 | 0 of 4 |" in lines
    assert [line for line in lines if line.startswith("| a | MR, 2 | 0.")]
