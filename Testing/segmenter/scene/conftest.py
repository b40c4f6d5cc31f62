# SPDX-License-Identifier: Apache-2.0
"""What the tests of the scene share: an empty scene, one worker, a small network."""

import pytest


@pytest.fixture
def scene():
    from slicer_scene_fixture import empty_scene

    with empty_scene() as scene:
        yield scene


@pytest.fixture(scope="module")
def one_worker():
    """Started once for all tests of a module."""
    from SRCSMSegmenterLib.scene import worker_host

    yield
    worker_host.stop_worker()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder, as the user may have named it: CT, liver above -100 HU, spleen above 50.

    The network is that of test_inference.py: its labels follow the intensity.
    """
    from SRCSMSegmenterLib.geometry import GridSpec
    from SRCSMSegmenterLib.models.bundle import save_bundle
    from Testing.segmenter.test_inference import a_bundle

    folder = tmp_path_factory.mktemp("models") / "mein Modell ü"
    save_bundle(folder, a_bundle(GridSpec((16, 16, 8), (1.0, 1.0, 1.5)), smoothing=0.5), "")
    return str(folder)
