# SPDX-License-Identifier: Apache-2.0
"""Devices to compute on, and the precision that is fastest on each."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from .errors import DeviceError

WITHOUT_BF16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)
"""Values of ONEDNN_MAX_CPU_ISA under which oneDNN leaves the processor's bfloat16 instructions."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of numbers by the names of precisions."""


def resolve_device(name: str) -> torch.device:
    """Resolve the name of a device.

    Args:
        name: "cpu", "cuda", "cuda:N", "mps", or "auto", the first there is of CUDA, MPS and CPU.

    Raises:
        DeviceError: unknown or absent; the message names the devices of this machine.
    """
    available = available_devices()
    if name == "auto":
        name = available[0]
    if name == "cuda" and "cuda:0" in available:
        name = "cuda:0"
    if name not in available:
        raise DeviceError(
            f'There is no device "{name}" here; choose auto or one of {", ".join(available)}.'
        )
    return torch.device(name)


def available_devices() -> list[str]:
    """List the names of the devices here, the fastest first, "cpu" last."""
    cuda = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, "cpu"]


def autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which torch computes in `preferred_precision`."""
    precision, _ = preferred_precision(device)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def preferred_precision(device: torch.device) -> tuple[str, str]:
    """Choose the precision that is fastest on a device.

    A CPU with AMX is 3.6 times as fast in bfloat16 as in float32 (inference), one with
    AVX512-BF16 alone 1.5 to 1.8 times (training steps); any other CPU emulates bfloat16.

    Returns:
        "bf16", "fp16" or "fp32", and the reason, a clause for the user.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU has bfloat16 instructions"
        # Older GPUs compute in half precision, but slowly.
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return "fp16", "the GPU is fast in float16 and has no bfloat16 instructions"
        return "fp32", "the GPU is fastest in float32"
    if device.type == "cpu":
        if instructions := bf16_instructions():
            return "bf16", f"the processor has {instructions}"
        return "fp32", "the processor has no bfloat16 instructions"
    return "fp32", f"nothing faster is known on {device.type}"


def bf16_instructions() -> str | None:
    """Name the bfloat16 instructions of the processor that torch may use; None without any."""
    # torch.cpu tells what the processor has; oneDNN, which convolves, obeys this variable.
    # ATEN_CPU_CAPABILITY is not asked: bfloat16 is as fast with avx2 there.
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    # Older versions of torch do not tell.
    can = getattr(torch.cpu, "get_capabilities", dict)()
    if most in WITHOUT_BF16:
        return None
    if can.get("amx_bf16") and "BF16" not in most:
        return "AMX"
    return "AVX512-BF16" if can.get("avx512_bf16") else None


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error of torch means that memory ran out."""
    # CUDA and MPS say the one, the CPU's allocator the other.
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text
