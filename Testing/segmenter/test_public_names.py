# SPDX-License-Identifier: Apache-2.0
"""Public names of the packages."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = ("SRCSMSegmenterLib", "SAMRefineLib", "srcsm_training")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there_and_listed(name):
    package = import_module(name)
    assert sorted(package.__all__) == dir(package)
    for public in package.__all__:
        assert getattr(package, public).__name__ == public
    with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'absent'"):
        _ = package.absent


def test_a_package_imports_nothing_before_a_name_is_asked_for():
    code = (
        "import sys, SRCSMSegmenterLib, SAMRefineLib, srcsm_training; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_the_mark_of_types(name):
    assert (Path(import_module(name).__file__).parent / "py.typed").is_file()
