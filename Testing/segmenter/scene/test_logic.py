# SPDX-License-Identifier: Apache-2.0
"""Segmenting from Slicer, through the real worker: panel, script and shell find the same labels;
whatever goes wrong, the scene stays as it was.
"""

import json

import numpy as np
import pytest
import slicer
from scene_cases import (
    GRID,
    a_scan,
    a_sequence,
    add_transform,
    add_volume,
    an_image,
    state,
    voxels,
)
from slicer_scene_fixture import start_scene

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.phantom import scans
from SRCSMSegmenterLib.scene import nodes, pace, samples, worker_host
from SRCSMSegmenterLib.scene.folder import segment_folder
from SRCSMSegmenterLib.scene.logic import segment
from SRCSMSegmenterLib.scene.measures import measures
from SRCSMSegmenterLib.scene.probabilities import probabilities
from SRCSMSegmenterLib.scene.result import Result
from SRCSMSegmenterLib.scene.results import place
from SRCSMSegmenterLib.volume_io import read_labels, write_volume
from SRCSMSegmenterLib.worker.protocol import WorkerError

pytestmark = [pytest.mark.needs_slicer, pytest.mark.usefixtures("one_worker")]


def labels_of(segmentation, volume):
    found = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
    for value, name in enumerate(("liver", "spleen"), start=1):
        found[voxels(segmentation, name, volume)] = value
    return found


def test_a_volume_is_segmented_in_one_line(scene, model):
    node = a_scan()
    segmentation = segment(node, model=model)
    labels = labels_of(segmentation, node)
    assert np.bincount(labels.ravel(), minlength=3).min() > 3
    image = slicer.util.arrayFromVolume(node)
    assert image[labels == 2].mean() > image[labels == 1].mean() > image[labels == 0].mean()
    rows = {row.name: row for row in measures(segmentation)}
    voxel = GRID.spacing.prod() / 1000
    assert rows["liver"].volume_ml == pytest.approx((labels == 1).sum() * voxel, abs=1e-3)
    assert len(rows["spleen"].least_certain) == 1  # it is less than 10 mm high
    chances = probabilities(segmentation)
    assert chances["liver"].shape == GRID.shape
    assert chances["liver"][labels == 1].mean() > chances["liver"][labels == 2].mean() + 0.2


def test_the_result_says_how_it_was_made(scene, model):
    node = a_scan()
    segmentation = segment(node, model=model, sourceMatching="off", organs=["spleen"], device="cpu")
    assert segmentation.GetAttribute("SRCSM.Model") == "thresholds"
    assert len(segmentation.GetAttribute("SRCSM.ModelIdentity")) == 64
    assert segmentation.GetAttribute("SRCSM.Date").endswith("+00:00")
    settings = json.loads(segmentation.GetAttribute("SRCSM.Settings"))
    assert settings["organs"] == ["spleen"]
    assert settings["used"] == {"modality": "CT", "source_matching": False, "device": "cpu"}
    assert list(segmentation.GetSegmentation().GetSegmentIDs()) == ["spleen"]
    assert probabilities(segmentation).keys() == {"spleen"}


@pytest.mark.parametrize("flip", [1, -1])
def test_panel_folder_and_shell_give_the_same_labels_voxel_for_voxel(scene, model, tmp_path, flip):
    from srcsm_training.cli import main as cli

    geometry = Geometry((21, 17, 11), GRID.affine @ np.diag([1.0, 1.0, flip, 1.0]))
    assert geometry.left_handed == (flip == 1)
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "süß 1.nii.gz"
    write_volume(file, Volume(an_image(geometry), geometry))
    (result,) = segment_folder(tmp_path / "in", tmp_path / "out", model=model)
    by_folder = read_labels(result.output)
    assert result.output == tmp_path / "out" / "süß 1.seg.nrrd"
    assert cli.main(["segment", str(file), "--model", model, "-o", str(tmp_path / "x.nii.gz")]) == 0
    by_shell = read_labels(tmp_path / "x.nii.gz")

    # As Slicer loads a file; left-handed ones it mirrors.
    storage, node = (
        scene.AddNewNodeByClass(f"vtkMRML{kind}Node")
        for kind in ("VolumeArchetypeStorage", "ScalarVolume")
    )
    storage.SetFileName(str(file))
    assert storage.ReadData(node)
    assert not nodes.node_geometry(node).left_handed
    by_panel = labels_of(segment(node, model=model), node)
    if geometry.left_handed:
        by_panel = by_panel[::-1]
    assert np.bincount(by_panel.ravel(), minlength=3).min() > 10
    np.testing.assert_array_equal(by_folder.array, by_panel)
    np.testing.assert_array_equal(by_shell.array, by_panel)
    assert by_folder.geometry.matches(geometry)


def test_islands_are_left_out_unless_they_are_asked_for(scene, model, tmp_path):
    image = an_image()
    image[4, 0:2, 0:3] = 170
    node = add_volume(array=image)
    options = {"model": model, "sourceMatching": "off"}
    whole = labels_of(segment(node, **options, keepLargest=False), node)
    alone = labels_of(segment(node, **options), node)
    assert whole[4, 0, 0] == 2
    assert alone[4, 0, 0] == 0
    assert alone[2, 3, 4] == whole[2, 3, 4] == 2
    write_volume(tmp_path / "a.nrrd", Volume(image, GRID))
    (result,) = segment_folder(tmp_path, tmp_path / "out", **options)
    np.testing.assert_array_equal(read_labels(result.output).array, alone)


def test_transforms_above_the_volume_do_not_change_what_is_found(scene, model):
    node = a_scan()
    expected = labels_of(segment(node, model=model), node)
    add_transform(node)
    segmentation = segment(node, model=model)
    np.testing.assert_array_equal(labels_of(segmentation, node), expected)


def test_a_frame_that_is_not_shown_is_segmented(scene, model):
    node, browser = a_sequence(2)
    frame = nodes.frame_node(node, 1)
    slicer.util.arrayFromVolume(frame)[:] = an_image()
    segmentation = segment(node, model=model, frame=1)
    browser.SetSelectedItemNumber(1)
    assert np.bincount(labels_of(segmentation, node).ravel(), minlength=3).min() > 3
    assert json.loads(segmentation.GetAttribute("SRCSM.Settings"))["frame"] == 1


def test_an_existing_segmentation_is_updated_and_restored(scene, model):
    node = a_scan()
    segmentation = segment(node, model=model)
    first = state()
    slicer.util.arrayFromVolume(node)[:] = an_image(seed=1)
    run = segment(node, model=model, outputSegmentation=segmentation, wait=False)
    assert run.wait() is segmentation
    assert state() != first
    run.undo()
    assert state() == first


def test_what_dicom_says_decides_the_modality(scene, model):
    node = a_scan()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "MR")
    run = segment(node, model=model, wait=False)
    used = json.loads(run.wait().GetAttribute("SRCSM.Settings"))["used"]
    assert used["modality"] == "MR"
    assert used["source_matching"] is True
    assert any("negative" in message for message in run.messages)
    segmentation = segment(node, model=model, modality="CT")
    assert json.loads(segmentation.GetAttribute("SRCSM.Settings"))["used"]["modality"] == "CT"


def test_organs_that_were_not_found_are_named(scene, model):
    node = a_scan()
    slicer.util.arrayFromVolume(node)[:] = -180
    slicer.util.arrayFromVolume(node)[1] = -40
    run = segment(node, model=model, sourceMatching="off", modality="CT", wait=False)
    segmentation = run.wait()
    assert run.messages[-1] == "Not found: spleen."
    assert not voxels(segmentation, "spleen", node).any()
    assert voxels(segmentation, "liver", node).any()


def test_without_waiting_callbacks_tell_how_it_goes(scene, model, monkeypatch):
    monkeypatch.setattr(pace, "_last_runs", {})
    heard, ended = [], []
    before = state()
    node = a_scan()
    run = segment(
        node, model=model, progress=lambda *news: heard.append(news), done=ended.append, wait=False
    )
    assert not run.finished
    while not run.finished:
        worker_host.worker().pump(0.05)
    assert ended == [run]
    assert run.error is None
    stages = [stage for stage, *_ in heard]
    assert list(dict.fromkeys(stages)) == ["load", "prepare", "network", "resample"]
    assert heard[-1][1:] == (1.0, 0.0)
    assert heard[0][1:] == (0.0, None)
    assert run.segmentationNode.GetID() not in before


def test_the_time_left_is_told_from_the_start_once_a_run_was_measured(scene, model, monkeypatch):
    monkeypatch.setattr(pace, "_last_runs", {})
    node, heard = a_scan(), []
    segment(node, model=model, progress=lambda *news: heard.append(news))
    assert heard[0] == ("load", 0.0, None)
    heard.clear()
    segment(node, model=model, progress=lambda *news: heard.append(news))
    assert heard[0][:2] == ("load", 0.0)
    assert heard[0][2] > 0
    assert None not in [left for *_, left in heard]
    heard.clear()
    segment(node, model=model, device="cpu", progress=lambda *news: heard.append(news))
    assert heard[0] == ("load", 0.0, None)


def test_cancelling_leaves_the_scene_as_it_is(scene, model):
    node = a_scan()
    before, ended = state(), []
    run = segment(node, model=model, done=ended.append, wait=False)
    run.cancel()
    with pytest.raises(WorkerError, match="cancelled"):
        run.wait()
    assert run.error.kind == "Cancelled"
    assert ended == [run]
    assert state() == before
    segment(node, model=model)  # and the next one works


def test_a_run_that_was_cancelled_says_only_that(scene, model):
    """As when the scene is closed: that its volume is gone as well is no news."""
    node = a_scan()
    run = segment(node, model=model, wait=False)
    run.cancel()
    scene.RemoveNode(node)
    with pytest.raises(WorkerError, match="cancelled"):
        run.wait()


@pytest.mark.parametrize("what", ["volume", "output", "scene", "grid", "voxels"])
def test_what_vanishes_during_a_run_is_no_exception_but_a_sentence(scene, model, what):
    node = a_scan()
    output = segment(node, model=model) if what == "output" else None
    run = segment(node, model=model, outputSegmentation=output, wait=False)
    match what:
        case "volume":
            scene.RemoveNode(node)
        case "output":
            scene.RemoveNode(output)
        case "scene":
            scene.Clear(0)
        case "grid":
            node.SetSpacing(2, 2, 2)
        case "voxels":
            node.SetAndObserveImageData(None)
    before = state()
    while not run.finished:
        worker_host.worker().pump(0.05)
    expected = {"output": 'output segmentation "scan segmentation" was removed'}
    expected |= dict.fromkeys(("grid", "voxels"), '"scan" was changed')
    assert expected.get(what, 'volume "scan" was removed') in str(run.error)
    assert run.segmentationNode is None
    assert state() == before


def test_a_volume_may_be_edited_while_it_is_on_its_way(scene, model):
    node = a_scan()
    expected = labels_of(segment(node, model=model), node)
    run = segment(node, model=model, wait=False)
    slicer.util.arrayFromVolume(node)[:] = 0
    np.testing.assert_array_equal(labels_of(run.wait(), node), expected)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"model": "nowhere"}, "BundleError", "nowhere is neither"),
        ({"organs": ["heart"]}, "BundleError", "does not know heart"),
        ({"device": "abacus"}, "DeviceError", "abacus"),
    ],
)
def test_errors_say_what_was_wrong_and_leave_the_scene_alone(scene, model, options, kind, sentence):
    node = a_scan()
    before = state()
    with pytest.raises(WorkerError, match=sentence) as caught:
        segment(node, **{"model": model, **options})
    assert caught.value.kind == kind
    assert caught.value.remedy
    assert state() == before


def test_a_scan_the_engine_refuses_is_an_error_with_a_remedy(scene, model):
    array = an_image().astype(np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(WorkerError, match="NaN") as caught:
        segment(add_volume(array=array), model=model)
    assert caught.value.kind == "VolumeError"


def test_what_cannot_work_is_refused_before_anything_is_computed(scene, model, monkeypatch):
    monkeypatch.setattr(worker_host, "worker", lambda: pytest.fail("the worker was asked"))
    node = a_scan()
    segmentation = place(
        Result(Volume(np.zeros(GRID.shape, np.uint8), GRID), ()), node
    ).segmentation
    segmentation.GetSegmentation().AddEmptySegment("mine")
    add_transform(node)
    with pytest.raises(VolumeError, match="does not lie on the grid"):
        segment(node, model=model, outputSegmentation=segmentation)
    with pytest.raises(VolumeError, match="no frame 3"):
        segment(node, model=model, frame=3)
    with pytest.raises(VolumeError, match="scalar volumes"):
        segment(segmentation, model=model)


@pytest.mark.slow
def test_a_shipped_network_finds_the_phantoms_organs(scene):
    start_scene()
    node = samples.load_phantom("CT")
    _, truth = scans.make_case(samples.PATIENT, "CT")
    segmentation = segment(node, model="abdomen-ct")
    liver = voxels(segmentation, "liver", node)
    expected = (truth.array[::-1] if truth.geometry.left_handed else truth.array) == 1
    assert 2 * (liver & expected).sum() / (liver.sum() + expected.sum()) > 0.5
