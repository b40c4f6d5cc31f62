# SPDX-License-Identifier: Apache-2.0
"""Segmenting from Slicer, through the real worker: panel, script and shell find the same labels;
whatever goes wrong, the scene stays as it was.

The network is that of test_inference.py: its labels follow the intensity.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slicer
from PIL import Image
from slicer_scene_fixture import empty_scene, start_scene

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.models.bundle import save_bundle
from SRCSMSegmenterLib.models.catalogue import read_card
from SRCSMSegmenterLib.phantom import scans
from SRCSMSegmenterLib.scene import logic as slicer_logic
from SRCSMSegmenterLib.scene import nodes, samples
from SRCSMSegmenterLib.scene.logic import input_warnings, seconds_left, segment, segment_folder
from SRCSMSegmenterLib.volume_io import read_labels, write_volume
from SRCSMSegmenterLib.worker.protocol import WorkerError
from Testing.segmenter.scene.test_nodes import (
    GRID,
    TURN,
    a_sequence,
    add_transform,
    add_volume,
    state,
    voxels,
)
from Testing.segmenter.test_inference import MR, a_bundle

pytestmark = pytest.mark.needs_slicer


@pytest.fixture
def scene():
    with empty_scene() as scene:
        yield scene


@pytest.fixture(scope="module", autouse=True)
def one_worker():
    """Started once for all tests."""
    yield
    slicer_logic.stop_worker()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder, as the user may have named it: CT, liver above -100 HU, spleen above 50."""
    folder = tmp_path_factory.mktemp("models") / "mein Modell ü"
    save_bundle(folder, a_bundle(GridSpec((16, 16, 8), (1.0, 1.0, 1.5)), smoothing=0.5), "")
    return str(folder)


def an_image(geometry=GRID, seed=0):
    """HU around a bright middle, with noise: all three labels are there."""
    k, j, i = np.indices(geometry.shape)
    away = sum(((x - (n - 1) / 2) / n) ** 2 for x, n in zip((k, j, i), geometry.shape, strict=True))
    noise = np.random.default_rng(seed).normal(0, 60, geometry.shape)
    image = np.where(away < 0.06, 170, np.where(away < 0.15, -20, -180)) + noise
    image[0, 0, 0] = -1000
    return image.astype(np.int16)


def a_scan(geometry=GRID, name="scan"):
    return add_volume(geometry, name, an_image(geometry))


def labels_of(segmentation, volume):
    found = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
    for value, name in enumerate(("liver", "spleen"), start=1):
        found[voxels(segmentation, name, volume)] = value
    return found


# what comes out


def test_a_volume_is_segmented_in_one_line(scene, model):
    node = a_scan()
    segmentation = segment(node, model=model)
    labels = labels_of(segmentation, node)
    assert np.bincount(labels.ravel(), minlength=3).min() > 3
    image = slicer.util.arrayFromVolume(node)
    assert image[labels == 2].mean() > image[labels == 1].mean() > image[labels == 0].mean()
    rows = {row.name: row for row in nodes.measures(segmentation)}
    voxel = GRID.spacing.prod() / 1000
    assert rows["liver"].volume_ml == pytest.approx((labels == 1).sum() * voxel, abs=1e-3)
    assert len(rows["spleen"].least_certain) > 1
    chances = nodes.probabilities(segmentation)
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
    assert nodes.probabilities(segmentation).keys() == {"spleen"}


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


# how it goes


def test_without_waiting_callbacks_tell_how_it_goes(scene, model):
    heard, ended = [], []
    before = state()
    node = a_scan()
    run = segment(
        node, model=model, progress=lambda *news: heard.append(news), done=ended.append, wait=False
    )
    assert not run.finished
    while not run.finished:
        slicer_logic.worker().pump(0.05)
    assert ended == [run]
    assert run.error is None
    stages = [stage for stage, *_ in heard]
    assert list(dict.fromkeys(stages)) == ["load", "prepare", "network", "resample"]
    assert heard[-1][1:] == (1.0, 0.0)
    assert heard[0][1:] == (0.0, None)
    assert run.segmentationNode.GetID() not in before


@pytest.mark.parametrize(
    ("elapsed", "fraction", "expected"), [(3.0, 0.25, 9.0), (3.0, 0.01, None), (9.0, 1.0, 0.0)]
)
def test_the_time_left_follows_the_pace(elapsed, fraction, expected):
    assert seconds_left(elapsed, fraction) == expected


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
        slicer_logic.worker().pump(0.05)
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
    monkeypatch.setattr(slicer_logic, "worker", lambda: pytest.fail("the worker was asked"))
    node = a_scan()
    segmentation = nodes.place(
        nodes.Result(Volume(np.zeros(GRID.shape, np.uint8), GRID), ()), node
    ).segmentation
    segmentation.GetSegmentation().AddEmptySegment("mine")
    add_transform(node)
    with pytest.raises(VolumeError, match="does not lie on the grid"):
        segment(node, model=model, outputSegmentation=segmentation)
    with pytest.raises(VolumeError, match="no frame 3"):
        segment(node, model=model, frame=3)
    with pytest.raises(VolumeError, match="scalar volumes"):
        segment(segmentation, model=model)


# folders


def test_one_bad_file_does_not_keep_the_others_from_being_segmented(model, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_volume(source / "good.nii.gz", Volume(an_image(), GRID))
    (source / "bad.nrrd").write_text("no image")
    (source / "notes.txt").write_text("no scan")
    (source / "old.seg.nrrd").write_text("no scan either")
    heard = []
    bad, good = segment_folder(
        source, tmp_path / "out", model=model, progress=lambda *news: heard.append(news)
    )
    assert bad.output is None
    assert "bad.nrrd cannot be read" in str(bad.error)
    assert good.error is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.seg.nrrd"]
    labels = read_labels(good.output)
    voxel = GRID.spacing.prod() / 1000
    assert good.volumes_ml["spleen"] == pytest.approx((labels.array == 2).sum() * voxel)
    assert "Taken for CT" in good.messages[0]
    assert {path.name for path, *_ in heard} == {"good.nii.gz"}
    assert heard[-1][1:] == ("resample", 1.0)


def test_a_folder_without_scans_or_with_two_of_one_name_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="holds no scans"):
        segment_folder(tmp_path, tmp_path / "out")
    for name in ("a.nii", "a.nrrd"):
        (tmp_path / name).touch()
    with pytest.raises(VolumeError, match="would be one file"):
        segment_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# what looks odd


@pytest.fixture
def card(model):
    return read_card(Path(model))


def odd(scale=1.0, offset=0.0, dtype=np.int16, geometry=None):
    geometry = geometry or Geometry((60, 50, 40), np.diag([2.0, -2.0, 3.0, 1.0]))
    image = np.random.default_rng(0).uniform(-1000, 1000, geometry.shape)
    return add_volume(geometry, "odd", (image * scale + offset).astype(dtype))


def grid(size, spacing):
    return Geometry(size, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(
    ("volume", "options", "expected"),
    [
        ({}, {}, []),
        ({"scale": 0.3, "offset": 400}, {}, []),
        ({"scale": 0.3, "offset": 400}, {"source_matching": "off"}, ["looks like MR"]),
        ({"scale": 0.3, "offset": 400}, {"modality": "CT"}, ["Hounsfield"]),
        ({"scale": 0.08}, {}, ["negative intensities"]),
        ({"scale": 0.003}, {}, ["has only 5 intensities; is it a label map"]),
        ({"scale": 0.003, "offset": 9, "dtype": np.float32}, {}, []),
        ({}, {"modality": "PT"}, ["DICOM says PT"]),
        ({"geometry": grid((60, 50, 9), (2, 2, 3))}, {}, ["only 27 mm thick"]),
        ({"geometry": grid((60, 50, 8), (2, 2, 15))}, {}, ["15 mm apart"]),
        ({"geometry": grid((60, 50, 250), (2, 2, 5))}, {}, ["1250 mm long"]),
    ],
)
def test_what_does_not_look_as_expected_is_said(scene, card, volume, options, expected):
    found = input_warnings(odd(**volume), card, **options)
    assert len(found) == len(expected), found
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence


def test_the_models_modality_decides_what_is_odd(scene, card):
    found = input_warnings(odd(), replace(card, modality=MR.modality), "off")
    assert "looks like CT, the network learned from MR" in found[0]


def rotation(degrees, mirror=1):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 5], [s, c, 0, 6], [0, 0, 1.2 * mirror, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("matrix", "warned"),
    [(rotation(20), False), (rotation(40), True), (rotation(0, mirror=-1), True), (TURN, True)],
)
def test_a_transform_that_turns_the_patient_is_pointed_out(scene, card, matrix, warned):
    node = odd()
    add_transform(node, matrix)
    found = input_warnings(node, card)
    assert [("transform turns" in sentence) for sentence in found] == [True] * warned


# sample data


@pytest.fixture
def small_phantom(monkeypatch):
    """In place of the real one, a few seconds less."""
    geometry = Geometry((9, 8, 7), GRID.affine)
    image = Volume(an_image(geometry), geometry)
    assert geometry.left_handed
    monkeypatch.setattr(scans, "make_case", lambda seed, modality: (image, None))
    return image


def test_the_phantom_pair_is_offered_by_sample_data(scene, small_phantom, monkeypatch):
    offered = {}

    def register(**source):
        offered[source.pop("sampleName")] = source

    logic = SimpleNamespace(registerCustomSampleDataSource=register)
    monkeypatch.setitem(sys.modules, "SampleData", SimpleNamespace(SampleDataLogic=logic))
    slicer_logic.register_sample_data()
    assert offered.keys() == {"SRCSMPhantomCT", "SRCSMPhantomMR"}
    for modality in ("CT", "MR"):
        (node,) = offered[f"SRCSMPhantom{modality}"]["customDownloader"](None)
        assert node.GetName() == f"Phantom {modality}"
        volume = nodes.read_volume(node)
        np.testing.assert_array_equal(volume.array, small_phantom.array[::-1])
        assert volume.geometry.matches(small_phantom.geometry.mirrored())
    assert samples.load_phantom("CT").GetName() == "Phantom CT_1"


# the worker


def test_where_there_is_qt_a_timer_pumps_the_worker_until_it_is_stopped(monkeypatch):
    timers = []

    class QTimer:
        def __init__(self):
            self.running = False
            timers.append(self)

        def setInterval(self, milliseconds):
            self.interval = milliseconds

        def connect(self, signal, call):
            assert signal == "timeout()"
            self.call = call

        def start(self):
            self.running = True

        def stop(self):
            self.running = False

    slicer_logic.stop_worker()
    monkeypatch.setitem(sys.modules, "qt", SimpleNamespace(QTimer=QTimer))
    job = slicer_logic.worker().submit("ping", {"x": 1})
    (timer,) = timers
    assert timer.running
    assert timer.interval <= 100
    while not job.finished:
        timer.call()
    assert job.reply.values == {"x": 1}
    slicer_logic.stop_worker()
    assert not timer.running


@pytest.mark.slow
def test_a_shipped_network_finds_the_phantoms_organs(scene):
    start_scene()
    node = samples.load_phantom("CT")
    _, truth = scans.make_case(samples.PATIENT, "CT")
    segmentation = segment(node, model="abdomen-ct")
    liver = voxels(segmentation, "liver", node)
    expected = (truth.array[::-1] if truth.geometry.left_handed else truth.array) == 1
    assert 2 * (liver & expected).sum() / (liver.sum() + expected.sum()) > 0.5


DRAWING = """
import sys
import slicer, vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(True)
if not window.SupportsOpenGL():
    sys.exit("VTK cannot draw here (on Debian: apt-get install libegl1 libgl1-mesa-dri)")
from pathlib import Path
import render_result
sys.path.append("../..")
from Testing.segmenter.scene import test_nodes as cases
from SRCSMSegmenterLib.scene.nodes import place
render_result.start_scene()
grid = cases.Geometry((20, 18, 12), cases.np.diag([9.0, -9.0, 12.0, 1.0]))
volume = cases.add_volume(grid)
segmentation = place(cases.some_result(grid), volume).segmentation
render_result.save(render_result.four_views(volume, segmentation), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_result_is_drawn_with_slicers_own_views(tmp_path):
    # In a process of its own: where there is no OpenGL, VTK may end it.
    drawn = subprocess.run(
        [sys.executable, "-c", DRAWING, str(tmp_path / "views.png")],
        cwd=Path(__file__).resolve().parents[2] / "helpers",
        capture_output=True,
        text=True,
    )
    if "cannot draw here" in drawn.stderr or drawn.returncode < 0:
        pytest.skip((drawn.stderr.strip().splitlines() or ["VTK cannot draw here"])[-1])
    assert drawn.returncode == 0, drawn.stderr
    image = np.asarray(Image.open(tmp_path / "views.png").convert("RGB")).astype(int)
    assert image.shape == (800, 800, 3)
    red, _, blue = np.moveaxis(image, -1, 0)
    axial, surfaces = np.s_[30:400, :400], np.s_[:320, 400:]
    assert (red[axial] - blue[axial] > 30).mean() > 0.01  # the liver's colour over grey
    assert (red[surfaces] - blue[surfaces] > 30).mean() > 0.01
    assert (blue[surfaces] - red[surfaces] > 20).mean() > 0.2  # the background of 3-D views
