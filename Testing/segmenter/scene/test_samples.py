# SPDX-License-Identifier: Apache-2.0
"""The phantom pair is offered by Slicer's Sample Data module."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from scene_cases import GRID, an_image

from SRCSMSegmenterLib.errors import Cancelled
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.phantom import scans
from SRCSMSegmenterLib.scene import nodes, samples, worker_host
from SRCSMSegmenterLib.worker.client import Reply
from SRCSMSegmenterLib.worker.tasks import TASKS

pytestmark = pytest.mark.needs_slicer


@pytest.fixture
def small_phantom(monkeypatch):
    """In place of the real one, a few seconds less."""
    geometry = Geometry((9, 8, 7), GRID.affine)
    image = Volume(an_image(geometry), geometry)
    assert geometry.left_handed
    monkeypatch.setattr(scans, "make_case", lambda seed, modality: (image, None))
    monkeypatch.setattr(samples, "worker", WorkerHere)
    return image


class WorkerHere:
    """In place of the worker: tasks are done at once, in this process."""

    def submit(self, task, parameters):
        values, arrays = TASKS[task](parameters, {}, None)
        return SimpleNamespace(finished=True, wait=lambda: Reply(values, arrays))


def test_the_phantom_pair_is_offered_by_sample_data(scene, small_phantom, monkeypatch):
    offered = {}

    def register(**source):
        offered[source.pop("sampleName")] = source

    logic = SimpleNamespace(registerCustomSampleDataSource=register)
    monkeypatch.setitem(sys.modules, "SampleData", SimpleNamespace(SampleDataLogic=logic))
    samples.register_sample_data()
    assert offered.keys() == {"SRCSMPhantomCT", "SRCSMPhantomMR"}
    for modality in ("CT", "MR"):
        (node,) = offered[f"SRCSMPhantom{modality}"]["customDownloader"](None)
        assert node.GetName() == f"Phantom {modality}"
        volume = nodes.read_volume(node)
        np.testing.assert_array_equal(volume.array, small_phantom.array[::-1])
        assert volume.geometry.matches(small_phantom.geometry.mirrored())
    assert samples.load_phantom("CT").GetName() == "Phantom CT_1"


def test_cancelling_ends_the_job_and_adds_nothing(scene, monkeypatch):
    cancelled, logic = [], SimpleNamespace()
    job = SimpleNamespace(finished=False, cancel=lambda: cancelled.append(True))
    busy = SimpleNamespace(submit=lambda task, parameters: job, pump=lambda seconds: None)
    monkeypatch.setattr(samples, "worker", lambda: busy)
    monkeypatch.setattr(worker_host, "worker", lambda: busy)

    @contextmanager
    def waiting(text):
        def aside(function, done=None):
            raise Cancelled("Stopped.")

        yield aside

    logic.registerCustomSampleDataSource = lambda **source: offered.append(source)
    offered = []
    monkeypatch.setitem(sys.modules, "SampleData", SimpleNamespace(SampleDataLogic=logic))
    samples.register_sample_data(waiting)
    assert offered[0]["customDownloader"](None) == []
    assert cancelled == [True]
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
