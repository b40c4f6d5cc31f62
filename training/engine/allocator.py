# SPDX-License-Identifier: Apache-2.0
"""The process's memory allocator; it needs no torch."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""

NEVER = 2**31 - 1
"""A threshold in bytes that is never met."""


def keep_freed_memory() -> bool:
    """Let the process reuse the memory that it frees, instead of giving it back.

    Otherwise the system maps every large tensor anew and clears its pages one by one: a tenth of
    the time of a training step, and more than that of SRC on whole volumes (BENCHMARKS.md). For
    processes that end with their work: the memory at the peak stays theirs.

    Returns:
        False if this is not glibc, where nothing changes.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))
