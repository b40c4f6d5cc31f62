# SPDX-License-Identifier: Apache-2.0
"""What a training computes on."""

import os

from accelerate import Accelerator

from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.errors import ConfigError

LARGEST_BF16_PLANE = 8192
"""Pixels of a slice. The bfloat16 weight gradient of oneDNN 3.12 and 3.13 (torch 2.13 to 2.15)
writes past its buffers on CPUs with AMX where slices are larger and windows are thin, and the heap
is damaged. With windows of one slice it is wrong on smaller ones too."""


def accelerator_for(
    device: str, precision: str, section: str = "optimisation", plane: float = 0
) -> Accelerator:
    """An accelerator on the device asked for, or as `accelerate launch` or `torchrun` set it up.

    Args:
        precision: "fp32", "bf16" or "fp16".
        section: of the configuration that the precision comes from.
        plane: pixels of the largest slice that trained convolutions see.

    Raises:
        DeviceError: unknown or absent.
        ConfigError: a precision that the device cannot train in.
    """
    mixed = "no" if precision == "fp32" else precision
    cpu = device == "cpu"
    if {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"}.isdisjoint(os.environ):
        chosen = resolve_device(device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(chosen)
        cpu = chosen.type == "cpu"
    accelerator = Accelerator(mixed_precision=mixed, cpu=cpu)
    if accelerator.device.type == "cpu" and precision == "fp16":
        raise ConfigError(
            f"fp16 needs a GPU; choose {section}.precision=bf16 or {section}.precision=fp32."
        )
    if accelerator.device.type == "cpu" and precision == "bf16" and plane > LARGEST_BF16_PLANE:
        raise ConfigError(
            "Slices this large, or windows this thin, cannot be trained on in bf16 on a CPU (see "
            f"LARGEST_BF16_PLANE in training/accelerator.py); choose {section}.precision=fp32."
        )
    return accelerator
