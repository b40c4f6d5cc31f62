# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of trainings that are stopped and resumed: when to stop, and equality to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srcsm_training.engine.checkpoint import load_checkpoint


def stop_after(*steps: int) -> Callable[[], bool]:
    """Make a `stop_requested` that stops after these steps, counted over all its calls."""
    done = iter(range(1, 1000))
    return lambda: next(done) in steps


def last(folder: Path) -> dict[str, Any]:
    """Load the last checkpoint of a run."""
    return load_checkpoint(folder / "checkpoints" / "last.pt")


def assert_same(first: Any, second: Any, where: str = "checkpoint") -> None:
    """Assert that two checkpoints are equal to the bit, but for the seconds that steps took."""
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


def differs(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Tell whether any of the first's tensors is another one in the second."""
    return any(not torch.equal(first[name], second[name]) for name in first)
