# SPDX-License-Identifier: Apache-2.0
"""Options, skipped markers, and the fixtures that several tests share."""

import importlib.util
import os
from pathlib import Path

# One thread here and in the processes that tests start: both then round alike, and threads only
# slow down networks of this size. torch reads the variable once, when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

settings.register_profile("srcsm", deadline=None)  # a loaded machine is slow, not wrong
settings.load_profile("srcsm")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    missing = {}
    if not config.getoption("--slow"):
        missing["slow"] = "slow; run pytest with --slow"
    if not DATA.is_dir():
        missing["needs_data"] = f"no development data at {DATA}"
    if not torch.cuda.is_available():
        missing["needs_gpu"] = "no CUDA device"
    if importlib.util.find_spec("slicer") is None:
        missing["needs_slicer"] = "slicer-core is not installed (pip install slicer-core)"
    for item in items:
        for marker, reason in missing.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of development datasets (mark such tests `needs_data`)."""
    return DATA


@pytest.fixture
def scene():
    """An empty MRML scene; skips the test if slicer-core is not installed."""
    from slicer_scene_fixture import empty_scene

    with empty_scene() as scene:
        yield scene


@pytest.fixture
def fresh_accelerator(monkeypatch):
    """Let a training choose its device and precision anew, and forget them afterwards."""
    import tiny

    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    tiny.forget_accelerator()
    yield
    tiny.forget_accelerator()
