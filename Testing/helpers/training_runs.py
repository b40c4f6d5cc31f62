# SPDX-License-Identifier: Apache-2.0
"""Trainings of `tiny`, their checkpoints, and comparisons to the bit."""

import tiny
import torch
from accelerate import Accelerator

from srcsm_training.engine.accelerator import Computing
from srcsm_training.engine.checkpoint import load_checkpoint
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.run_folder import case_identity, open_run
from srcsm_training.segmentation import training
from SRCSMSegmenterLib.intensity import IntensityRule

RULE = IntensityRule("CT", window=(-125, 275))
SILENT = Limits(say=lambda line: None)


def train(
    config, cases, folder, *, mixed_precision="no", cpu=True, scaler=None, preview=None, **limits
):
    tiny.forget_accelerator()
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision)
    accelerator.scaler = scaler or accelerator.scaler
    names = [[case.name for case in group] for group in cases]
    opened = open_run(
        folder,
        config,
        Computing(accelerator, "asked for"),
        identity=case_identity(config, *names),
        tell=lambda line: None,
        labels=list(tiny.LABELS)[1:],
    )
    preview = preview or (lambda network, progress: None)
    return training.train(opened, RULE, *cases, preview=preview, limits=Limits(**limits))


def stop_after(*steps):
    """Stops after the given numbers of steps, counted over all calls."""
    done = iter(range(1, 1000))
    return lambda: next(done) in steps


def last(folder):
    return load_checkpoint(folder / "checkpoints" / "last.pt")


def assert_same(first, second, where="checkpoint"):
    """Equal to the bit, but for the seconds a step took."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first.keys() - {"seconds"}:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for n, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{n}]")
    else:
        assert first == second or (first != first and second != second), where


def differs(first, second):
    return any(not torch.equal(first[name], second[name]) for name in first)
