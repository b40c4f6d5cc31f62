# SPDX-License-Identifier: Apache-2.0
"""Description of the machine that a time was measured on."""

import os
import platform
import re
from pathlib import Path

import torch


def machine(device: torch.device) -> str:
    """Describe the processor, the GPU if `device` is one, the threads and PyTorch's version."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        re.findall(r"model name\s*: (.*)", cpuinfo.read_text("utf-8")) if cpuinfo.exists() else []
    )
    processor = names[0] if names else platform.processor()
    if device.type == "cuda":
        processor += f", {torch.cuda.get_device_name(device)}"
    if most := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        processor += f" (at most {most})"
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, device {device}"
    )
