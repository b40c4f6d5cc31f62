# SPDX-License-Identifier: Apache-2.0
"""Device and precision of a training."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from SRCSMSegmenterLib.devices import bf16_instructions, preferred_precision, resolve_device
from SRCSMSegmenterLib.errors import ConfigError

from .processes import start_other_processes

LARGEST_BF16_PLANE = 8192
"""Pixels of a slice. The bfloat16 weight gradient of oneDNN 3.12 and 3.13 (torch 2.13 to 2.15)
writes past its buffers on CPUs with AMX where slices are larger and windows are thin, and the heap
is damaged. With windows of one slice it is wrong on smaller ones too."""

EMULATION_FACTOR = 34
"""Time of a training step in emulated bfloat16 over that in float32 (abdomen-tiny, a CPU with AVX2
alone)."""


@dataclass(frozen=True, eq=False)
class Computing:
    """The device and the precision of a training.

    Attributes:
        accelerator: of all the processes of the training.
        reason: for the precision, a clause for the user.
        warning: a sentence for the user, or "".
    """

    accelerator: Accelerator
    reason: str
    warning: str = ""

    @property
    def precision(self) -> str:
        """The precision in use: "fp32", "bf16" or "fp16"."""
        mixed = self.accelerator.mixed_precision
        return "fp32" if mixed == "no" else mixed

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and tells the user."""
        return self.accelerator.is_main_process

    def introduce(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Tell the user the device, the precision and the reason for it.

        Returns:
            `say` on the main process, a function that does nothing on the others.
        """
        tell = say if self.main else _silent
        processes = self.accelerator.num_processes
        tell(
            f"Computing on {self.accelerator.device} ({processes} process"
            f"{'es' if processes > 1 else ''}) in {self.precision}: {self.reason}."
        )
        if self.warning:
            tell(f"Warning: {self.warning}")
        return tell

    def record(self) -> dict[str, Any]:
        """Return the device and the precision as plain values, for environment.json."""
        return {
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "precision": self.precision,
            "precision_reason": self.reason,
        }


def accelerator_for(
    device: str, precision: str, section: str = "optimisation", plane: float = 0
) -> Computing:
    """Make an accelerator on the requested device, or as `accelerate launch` or `torchrun` asks.

    Args:
        precision: one of `config.PRECISIONS`.
        section: of the configuration that the precision comes from.
        plane: pixels of the largest slice that trained convolutions see.

    Raises:
        DeviceError: unknown or absent.
        ConfigError: a precision that the device cannot train in.
    """
    start_other_processes()
    if {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"}.isdisjoint(os.environ):
        chosen = resolve_device(device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(chosen)
        cpu = chosen.type == "cpu"
    else:
        # accelerate takes processes without a GPU for separate ones unless it is told of the CPU.
        on_cpus = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        cpu = device == "cpu" or on_cpus or resolve_device("auto").type == "cpu"
    placed = PartialState(cpu=cpu).device
    precision, reason, warning = _precision_on(placed, precision, section, plane)
    mixed = "no" if precision == "fp32" else precision
    return Computing(Accelerator(mixed_precision=mixed, cpu=cpu), reason, warning)


def _precision_on(
    device: torch.device, asked: str, section: str, plane: float
) -> tuple[str, str, str]:
    """Choose the precision; return it, the reason for it, and a warning or ""."""
    on_cpu, too_large = device.type == "cpu", plane > LARGEST_BF16_PLANE
    if asked == "auto":
        precision, reason = preferred_precision(device)
        if on_cpu and precision == "bf16" and too_large:
            return "fp32", "slices this large, or windows this thin, need it on a CPU", ""
        return precision, reason, ""
    if on_cpu and asked == "fp16":
        raise ConfigError(
            f"fp16 needs a GPU; choose {section}.precision=auto or {section}.precision=fp32."
        )
    if on_cpu and asked == "bf16" and too_large:
        raise ConfigError(
            "Slices this large, or windows this thin, cannot be trained on in bf16 on a CPU (see "
            "LARGEST_BF16_PLANE in training/engine/accelerator.py); choose "
            f"{section}.precision=auto or "
            f"{section}.precision=fp32."
        )
    warning = ""
    if on_cpu and asked == "bf16" and not bf16_instructions():
        warning = (
            "this processor emulates bf16, and a step takes about "
            f"{EMULATION_FACTOR} times as long as in fp32; choose {section}.precision=auto."
        )
    return asked, "the configuration asks for it", warning


def _silent(line: str) -> None:
    """Drop a line for the user."""
