# SPDX-License-Identifier: Apache-2.0
"""Where to compute."""

import torch

from .errors import DeviceError


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: "cpu", "cuda", "cuda:N", "mps", or "auto", the first there is of CUDA, MPS and CPU.

    Raises:
        DeviceError: unknown or absent; names those there are.
    """
    there_are = available_devices()
    if name == "auto":
        name = there_are[0]
    if name == "cuda" and "cuda:0" in there_are:
        name = "cuda:0"
    if name not in there_are:
        raise DeviceError(
            f'There is no device "{name}" here; choose auto or one of {", ".join(there_are)}.'
        )
    return torch.device(name)


def available_devices() -> list[str]:
    """Names of the devices here, the fastest first, "cpu" last."""
    cuda = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, "cpu"]
