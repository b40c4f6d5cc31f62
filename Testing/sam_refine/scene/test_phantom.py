# SPDX-License-Identifier: Apache-2.0
"""SAM Refine end to end: the phantom in a scene, the worker, the shipped small SAM."""

import numpy as np
import pytest
import slicer
from scene_cases import add_volume, draw, voxels
from slicer_scene_fixture import empty_scene

from SAMRefineLib.boxes.boxes import Box3D
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.organ_state import Settings
from SAMRefineLib.scene.logic import boxes, refine
from SAMRefineLib.scene.roi_views import show_block
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder
from SRCSMSegmenterLib.phantom.scans import make_case
from SRCSMSegmenterLib.scene import logic, nodes, samples, worker_host

pytestmark = [
    pytest.mark.needs_slicer,
    pytest.mark.skipif(
        not (shipped_models_folder() / "sam-small-mr").is_dir(), reason="no SAM is shipped"
    ),
]

LABELS = {"liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}


@pytest.fixture
def scene():
    worker_host.stop_worker()
    with empty_scene() as scene:
        yield scene
    worker_host.stop_worker()


@pytest.fixture
def scan(scene):
    """The MR of the sample data with a slice view, and its truth as masks."""
    image, labels = make_case(samples.PATIENT, "MR")
    array, truth = image.array, labels.array
    geometry = image.geometry
    if geometry.left_handed:  # as Slicer has it
        array, truth, geometry = array[::-1], truth[::-1], geometry.mirrored()
    scene.AddNewNodeByClass("vtkMRMLSliceNode")
    volume = add_volume(geometry, "Phantom MR", Volume(array, geometry).array)
    return volume, {name: truth == value for name, value in LABELS.items()}


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def drag(session, roi, block):
    """As the mouse does."""
    show_block(roi, block, session.volumeNode, session.grid.geometry)
    roi.InvokeCustomModifiedEvent(roi.PointEndInteractionEvent)


def test_a_spoiled_box_that_is_moved_back_beats_the_coarse_mask(scan):
    volume, truth = scan
    kidney, j = truth["left_kidney"], np.flatnonzero(truth["left_kidney"].any(axis=(0, 2)))
    coarse = kidney.copy()
    coarse[:, j[0] + len(j) * 3 // 5 :] = False  # a side of the organ is missing
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "coarse")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    draw(node, "left_kidney", coarse, volume)
    draw(node, "spleen", truth["spleen"], volume)
    session = boxes(node, volume, settings=Settings(modality="MR"))

    def found(name="left_kidney"):
        return voxels(node, name, volume)

    right = session.organ(1).frames.bounds3d()
    # Spoiled: the ROI slipped to one side.
    slip = (0, 15, 0)
    drag(
        session,
        session.bound(1),
        Box3D(np.subtract(right.lower, slip), np.subtract(right.upper, slip)),
    )
    refine(session, ["left_kidney"])
    spoiled = dice(found(), kidney)
    # Moved back, and its face dragged to where the organ ends.
    drag(session, session.bound(1), right)
    beyond = (0, j[-1] + 1 - right.upper[1], 0)
    drag(session, session.bound(1), Box3D(right.lower, np.add(right.upper, beyond)))
    refine(session, ["left_kidney"])
    corrected = dice(found(), kidney)
    print(f"coarse {dice(coarse, kidney):.3f} spoiled {spoiled:.3f} corrected {corrected:.3f}")
    assert corrected > 0.85
    assert corrected > dice(coarse, kidney) + 0.05
    assert spoiled < dice(coarse, kidney)
    np.testing.assert_array_equal(found("spleen"), truth["spleen"])
    for _ in range(5):
        session.undo()
    np.testing.assert_array_equal(found(), coarse)


@pytest.mark.slow
def test_a_spleen_that_the_network_found_badly_is_corrected_by_five_boxes(scan):
    volume, truth = scan
    spleen = truth["spleen"]
    segmentation = logic.segment(volume, model="abdomen-ct")
    name = nodes.organ_segments(segmentation.GetSegmentation())["spleen"]
    session = boxes(segmentation, volume, [name])

    def found():
        return voxels(segmentation, name, volume)

    coarse = dice(found(), spleen)
    seen = KeyFrames.from_coarse("spleen", 1, spleen, session.grid).effective()
    slices = sorted(seen)
    for share in (0, 1 / 6, 1 / 2, 5 / 6, 1):
        n = slices[round(share * (len(slices) - 1))]
        session.jump(n)
        if n not in session.organ(1).frames.effective():
            session.add_slice_box(1)
        drag(session, session.slice_box(1), session.grid.block(seen[n], n))
    refine(session)
    corrected = dice(found(), spleen)
    print(f"coarse {coarse:.3f} corrected {corrected:.3f}")
    assert coarse < 0.75
    assert corrected > coarse + 0.1
