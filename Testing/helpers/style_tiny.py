# SPDX-License-Identifier: Apache-2.0
"""A style intervention so small that a test runs it whole in seconds: 32 pixels, a few steps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny

from srcsm_training.engine.config import from_dict, with_overrides
from srcsm_training.engine.limits import Limits
from srcsm_training.style.config import StyleConfig
from srcsm_training.style.control import train_control
from srcsm_training.style.phantom_slices import write_phantom_slices
from srcsm_training.style.prepare import prepare
from srcsm_training.style.small import train_base
from srcsm_training.style.tune import tune

STAGE = {
    "steps": 4,
    "batch": 2,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "preview_every": 0,
}

SETTINGS = {
    "size": 32,
    "prepare": {"every": 4, "foreground": 0.001, "field_of_view": 60.0},
    "phantom": {"patients": 2, "slices": 2},
    "base": {
        "autoencoder": {**STAGE, "channels": [8, 16], "crop": 16},
        "denoiser": {
            **STAGE,
            "channels": [8, 16],
            "attention": 1,
            "heads": 2,
            "text_width": 16,
            "text_layers": 1,
        },
    },
    "tune": {**STAGE, "accumulation": 2, "learning_rate": 1e-3},
    "control": {**STAGE, "accumulation": 1, "learning_rate": 1e-2},
    "sampling": {"steps": 2},
    "swap": {"batch": 5, "per_slice": 2, "precision": "fp32"},
}


def config(*overrides: str) -> StyleConfig:
    """The configuration of all stages, with overrides as on the command line."""
    return with_overrides(from_dict(SETTINGS, StyleConfig()), list(overrides))


def silent(line: str) -> None:
    """Takes a line for the user."""


SILENT = Limits(say=silent)


@dataclass(frozen=True)
class Chain:
    """Folders of what the stages made of `tiny`'s dataset."""

    data: Path
    slices: Path
    phantom: Path
    base: Path
    tuned: Path
    control: Path


def run_chain(folder: Path) -> Chain:
    """All stages before the swap."""
    chain = Chain(
        *(folder / n for n in ("Dataset001_Tiny", "ct", "phantom", "base", "tuned", "control"))
    )
    on = {"device": "cpu", "limits": SILENT}
    tiny.write_dataset(chain.data)
    prepare(chain.data, chain.slices, config(), limits=SILENT)
    write_phantom_slices(chain.phantom, config())
    train_base([chain.phantom, chain.slices], chain.base, config(), **on)
    tune(chain.slices, str(chain.base), chain.tuned, config(), **on)
    train_control(chain.slices, str(chain.base), chain.control, config(), tuned=chain.tuned, **on)
    return chain


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Pictures that differ by rounding alone."""
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1
