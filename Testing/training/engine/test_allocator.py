# SPDX-License-Identifier: Apache-2.0
"""Memory that a process frees and uses again."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from srcsm_training.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def touch():
    b"x" * (16 << 20)  # NumPy would ask for huge pages
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_clearing_its_pages():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))
        for how in ("keep", "give back")
    }
    assert faults["keep"] < faults["give back"] / 10
