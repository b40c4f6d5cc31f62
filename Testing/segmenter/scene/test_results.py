# SPDX-License-Identifier: Apache-2.0
"""Results in the scene, on Slicer's own nodes: exact grids, safe neighbours, undo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk
from geometries import geometries
from hypothesis import given, settings
from PIL import Image
from scene_cases import (
    GRID,
    a_sequence,
    add_transform,
    add_volume,
    draw,
    labelmap_affine,
    organ,
    some_labels,
    some_result,
    state,
    voxels,
)
from slicer_scene_fixture import empty_scene
from vtk.util.numpy_support import vtk_to_numpy

from SRCSMSegmenterLib.errors import Cancelled, VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.scene import results
from SRCSMSegmenterLib.scene.measures import (
    TABLE,
    as_table,
    measures,
    remeasure,
    slice_axis,
)
from SRCSMSegmenterLib.scene.nodes import (
    BINARY,
    SURFACE,
    node_geometry,
    organ_segments,
    read_volume,
    reference_geometry,
)
from SRCSMSegmenterLib.scene.probabilities import probabilities
from SRCSMSegmenterLib.scene.results import place
from SRCSMSegmenterLib.scene.surfaces import make_surfaces, surfaces_of

pytestmark = pytest.mark.needs_slicer


@given(geometry=geometries(max_size=5))
@settings(max_examples=40)
def test_segments_lie_exactly_on_the_volumes_grid(geometry):
    with empty_scene():
        node = add_volume(geometry)
        add_transform(node)
        result = some_result(geometry)
        segmentation = place(result, node).segmentation
        for each in result.organs:
            affine = labelmap_affine(segmentation, each.name)
            np.testing.assert_allclose(affine, geometry.affine, rtol=0, atol=1e-9)
            expected = result.labels.array == each.label
            np.testing.assert_array_equal(voxels(segmentation, each.name, node), expected)
        assert reference_geometry(segmentation).matches(geometry, 1e-9)
        assert segmentation.GetTransformNodeID() == node.GetTransformNodeID()


def test_segments_have_names_colours_and_terms_that_slicer_understands(scene):
    segmentation = place(some_result(), add_volume()).segmentation
    segment = segmentation.GetSegmentation().GetSegment("right_kidney")
    assert segment.GetName() == "right kidney"
    np.testing.assert_allclose(segment.GetColor(), np.array((185, 102, 83)) / 255, atol=1e-6)
    entry, logic = slicer.vtkSlicerTerminologyEntry(), slicer.vtkSlicerTerminologiesModuleLogic()
    assert logic.DeserializeTerminologyEntry(segment.GetTerminology(), entry)
    assert entry.GetTypeObject().GetCodeValue() == "64033007"
    assert entry.GetTypeModifierObject().GetCodeMeaning() == "Right"


def test_a_result_goes_beside_its_volume_into_the_study(scene):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    node = add_volume()
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.CreateItem(study, node)
    change = place(some_result(), node)
    for each in (change.segmentation, change.table):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(each)) == study


def test_a_result_says_where_it_comes_from(scene):
    node = add_volume(name="CT 7")
    segmentation = place(some_result(), node).segmentation
    assert segmentation.GetName() == "CT 7 segmentation"
    assert segmentation.GetAttribute("SRCSM.Model") == "abdomen-ct"
    assert segmentation.GetAttribute("SRCSM.Date") == "2026-11-21T04:00:00+00:00"
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    assert segmentation.GetNodeReference(role) is node


def test_a_frames_result_lies_on_the_frames_grid_and_refers_to_the_node_that_shows_it(scene):
    node, _ = a_sequence()
    add_transform(node)
    geometry = read_volume(node, 2).geometry
    segmentation = place(some_result(geometry), node).segmentation
    np.testing.assert_allclose(labelmap_affine(segmentation, "liver"), geometry.affine, atol=1e-9)
    assert reference_geometry(segmentation).matches(geometry)
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    assert segmentation.GetNodeReference(role) is node


def test_an_organ_that_was_not_found_is_an_empty_segment(scene):
    node = add_volume()
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2, 3, 4] = 2
    segmentation = place(some_result(labels=Volume(labels, GRID)), node).segmentation
    assert not voxels(segmentation, "liver", node).any()
    assert np.argwhere(voxels(segmentation, "right_kidney", node)).tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32, np.float16])
def test_labels_of_another_type_are_no_empty_or_wrong_segments_but_an_error(scene, dtype):
    node = add_volume()
    before = state()
    with pytest.raises(TypeError, match="uint8"):
        place(some_result(labels=Volume(some_labels().astype(dtype), GRID)), node)
    assert state() == before


@pytest.fixture
def drawn(scene):
    """A volume, a result, and what the user drew: in the organs' own layer, and over them."""
    node = add_volume()
    segmentation = place(some_result(), node).segmentation
    labels = some_labels()
    free = np.zeros(GRID.shape, bool)
    free[1, 2:5, 3:8] = labels[1, 2:5, 3:8] == 0
    over = np.zeros(GRID.shape, bool)
    over[1:4, 1:6, 2:8] = True
    draw(segmentation, "cyst", free, node)
    segmentation.GetSegmentation().CollapseBinaryLabelmaps(False)
    draw(segmentation, "lesion", over, node)
    assert segmentation.GetSegmentation().GetNumberOfLayers() == 2
    segmentation.SetAndObserveTransformNodeID(add_transform(node).GetID())
    return node, segmentation, {"cyst": free, "lesion": over}


def test_updating_replaces_organs_and_leaves_what_the_user_drew(drawn):
    node, segmentation, masks = drawn
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    result = some_result(seed=2)
    change = place(result, node, segmentation)
    assert change.segmentation is segmentation
    assert segmentation.GetSegmentation().GetSegmentIDs() == ids
    for name, mask in masks.items():
        np.testing.assert_array_equal(voxels(segmentation, name, node), mask)
    for each in result.organs:
        expected = result.labels.array == each.label
        np.testing.assert_array_equal(voxels(segmentation, each.name, node), expected)
        np.testing.assert_allclose(labelmap_affine(segmentation, each.name), GRID.affine)
    # Nothing of the old organs is left in the layer they shared with the cyst.
    cyst = segmentation.GetSegmentation().GetSegment("cyst")
    scalars = cyst.GetRepresentation(BINARY).GetPointData().GetScalars()
    assert set(vtk_to_numpy(scalars)) == {0, cyst.GetLabelValue()}


def test_undoing_an_update_returns_to_the_state_before(drawn):
    node, segmentation, _ = drawn
    before, chances = state(), probabilities(segmentation)
    organs = (organ("liver", 1, 7.0, ()), organ("spleen", 2, 8.0))
    result = some_result(seed=2, organs=organs, attributes={"Model": "other", "New": "x"})
    change = place(result, node, segmentation)
    assert state() != before
    change.undo()
    assert state() == before
    assert probabilities(segmentation) is chances
    change.undo()
    assert state() == before


def test_undoing_leaves_what_the_user_drew_since(drawn):
    node, segmentation, masks = drawn
    change = place(some_result(seed=2), node, segmentation)
    later = np.zeros(GRID.shape, bool)
    later[2:4, 5:, :3] = True
    draw(segmentation, "later", later, node)
    change.undo()
    np.testing.assert_array_equal(voxels(segmentation, "later", node), later)
    np.testing.assert_array_equal(voxels(segmentation, "lesion", node), masks["lesion"])
    np.testing.assert_array_equal(voxels(segmentation, "liver", node), some_labels() == 1)


def test_undoing_a_new_segmentation_leaves_nothing(scene):
    node = add_volume()
    add_transform(node)
    before = state()
    change = place(some_result(), node)
    change.undo()
    assert state() == before


@pytest.mark.parametrize("gone", ["segmentation", "table", "segment", "scene"])
def test_undoing_what_the_user_removed_does_no_harm(drawn, gone):
    """It takes back the rest, or nothing if the segmentation is gone."""
    node, segmentation, _ = drawn
    expected = state()
    change = place(some_result(seed=2), node, segmentation)
    assert state() != expected
    own = expected[segmentation.GetID()]
    match gone:
        case "segmentation":
            slicer.mrmlScene.RemoveNode(segmentation)
            expected = state()
        case "table":
            id = change.table.GetID()
            del expected[id]
            own["references"] = {k: v for k, v in own["references"].items() if v != id}
            slicer.mrmlScene.RemoveNode(change.table)
        case "segment":
            del own["liver"]
            segmentation.GetSegmentation().RemoveSegment("liver")
        case "scene":
            slicer.mrmlScene.Clear(0)
            expected = state()
    change.undo()
    assert state() == expected


def test_slices_to_check_count_along_the_scans_slice_axis(scene):
    geometry = Geometry((9, 7, 5), np.diag([5.0, 1.0, 1.0, 1.0]))  # sagittal slices
    segmentation = place(some_result(geometry), add_volume(geometry)).segmentation
    assert slice_axis(segmentation) == 0
    assert measures(segmentation)[0].least_certain == ((2, 3.25), (0, 1.5))
    remeasure(segmentation, "liver")
    assert slice_axis(segmentation) == 0
    name = segmentation.GetNodeReference(TABLE).GetTable().GetColumnName(2)
    assert name == "Least certain slices (I)"


def test_slices_that_an_older_version_counted_otherwise_do_not_stay(scene):
    geometry = Geometry((9, 7, 5), np.diag([5.0, 1.0, 1.0, 1.0]))
    node = add_volume(geometry)
    segmentation = place(some_result(geometry), node).segmentation
    rows = measures(segmentation)
    segmentation.GetNodeReference(TABLE).SetAndObserveTable(as_table(rows))  # along K
    assert slice_axis(segmentation) == 2
    assert measures(segmentation) == rows
    place(some_result(geometry, organs=(organ("spleen", 2),)), node, segmentation)
    assert [row.least_certain for row in measures(segmentation)] == [(), (), ((2, 3.25), (0, 1.5))]


def test_an_organ_that_was_not_asked_for_again_stays(drawn):
    node, segmentation, _ = drawn
    chance = np.full(GRID.shape, 0.25, np.float16)
    result = some_result(seed=2, organs=(organ("liver", 1, 9.0),), probabilities={"liver": chance})
    place(result, node, segmentation)
    labels = some_labels()
    np.testing.assert_array_equal(voxels(segmentation, "right_kidney", node), labels == 2)
    assert [(row.name, row.volume_ml) for row in measures(segmentation)] == [
        ("liver", 9.0),
        ("right kidney", 0.25),
    ]
    assert probabilities(segmentation)["liver"] is chance
    assert "right_kidney" in probabilities(segmentation)


def test_a_users_segment_of_an_organs_name_is_the_users(scene):
    node = add_volume()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
    mask = some_labels(seed=5) == 1
    draw(segmentation, "liver", mask, node)
    for seed in (2, 3):
        place(some_result(seed=seed), node, segmentation)
    np.testing.assert_array_equal(voxels(segmentation, "liver", node), mask)
    ours = organ_segments(segmentation.GetSegmentation())["liver"]
    assert segmentation.GetSegmentation().GetSegment(ours).GetName() == "liver (SRCSM)"
    np.testing.assert_array_equal(voxels(segmentation, ours, node), some_labels(seed=3) == 1)
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 3


def test_an_empty_segmentation_moves_to_the_volume(scene):
    node = add_volume()
    transform = add_transform(node)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "fresh")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    hierarchy.CreateItem(hierarchy.GetSceneItemID(), segmentation)
    before = state()
    change = place(some_result(), node, segmentation)
    assert segmentation.GetTransformNodeID() == transform.GetID()
    assert segmentation.GetName() == "fresh"
    change.undo()
    assert state() == before


def test_a_segmentation_that_lies_elsewhere_is_refused_untouched(drawn):
    node, segmentation, _ = drawn
    before = state()
    affine = GRID.affine.copy()
    affine[0, 3] += 0.1
    with pytest.raises(VolumeError, match="does not lie on the grid"):
        place(some_result(Geometry(GRID.size, affine)), node, segmentation)
    other = add_volume(name="moved")
    with pytest.raises(VolumeError, match='grid of "moved"'):
        place(some_result(), other, segmentation)
    for each in (other.GetDisplayNode(), other):
        slicer.mrmlScene.RemoveNode(each)
    assert state() == before


def test_a_segmentation_of_surfaces_is_refused(drawn):
    node, segmentation, _ = drawn
    segmentation.CreateClosedSurfaceRepresentation()
    segmentation.GetSegmentation().SetSourceRepresentationName(SURFACE)
    with pytest.raises(VolumeError, match="surfaces"):
        place(some_result(), node, segmentation)


def test_surfaces_that_are_shown_follow(drawn):
    node, segmentation, _ = drawn
    segmentation.CreateClosedSurfaceRepresentation()

    def centre():
        surface = vtk.vtkPolyData()
        segmentation.GetClosedSurfaceRepresentation("liver", surface)
        return surface.GetCenter()

    first = centre()
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:5, 4:7, 5:9] = 1
    change = place(some_result(labels=Volume(labels, GRID)), node, segmentation)
    np.testing.assert_allclose(centre(), GRID.to_ras((6.5, 5, 3.5)), atol=1.5)
    change.undo()
    np.testing.assert_allclose(centre(), first, atol=1e-3)


@pytest.mark.parametrize("allowed", range(5))
def test_cancelling_between_pieces_leaves_no_trace(drawn, allowed):
    node, segmentation, _ = drawn
    segmentation.CreateClosedSurfaceRepresentation()
    before, surfaces = state(), surfaces_of(segmentation.GetSegmentation())
    pieces = iter(range(allowed))

    def aside(function, done=None):
        if next(pieces, None) is None:
            raise Cancelled("Stopped.")
        return function()

    with pytest.raises(Cancelled):
        place(some_result(seed=2), node, segmentation, aside)
    assert state() == before
    after = surfaces_of(segmentation.GetSegmentation())
    assert {id: after[id].GetBounds() for id in after} == {
        id: surfaces[id].GetBounds() for id in surfaces
    }


def test_undoing_brings_the_surfaces_of_its_organs_back_and_keeps_newer_ones(drawn):
    node, segmentation, _ = drawn
    segmentation.CreateClosedSurfaceRepresentation()
    before = surfaces_of(segmentation.GetSegmentation())
    organs = (organ("liver", 1), organ("spleen", 2))  # the spleen is new
    change = place(some_result(seed=2, organs=organs), node, segmentation)
    draw(segmentation, "lesion 2", some_labels(seed=2) == 0, node)
    make_surfaces(segmentation)
    now = surfaces_of(segmentation.GetSegmentation())
    change.undo()
    after = surfaces_of(segmentation.GetSegmentation())
    assert after["liver"] is before["liver"] is not now["liver"]
    assert after["lesion 2"] is now["lesion 2"]


def test_an_update_and_its_undo_copy_no_voxels_that_nobody_shares(scene):
    node = add_volume()
    segmentation = place(some_result(), node).segmentation
    images = lambda: {  # noqa: E731
        segmentation.GetSegmentation().GetSegment(id).GetRepresentation(BINARY)
        for id in segmentation.GetSegmentation().GetSegmentIDs()
    }
    (before,) = images()
    change = place(some_result(seed=2), node, segmentation)
    assert images() != {before}
    change.undo()
    assert images() == {before}
    np.testing.assert_array_equal(voxels(segmentation, "liver", node), some_labels() == 1)


def test_what_fails_half_way_leaves_no_trace(drawn, monkeypatch):
    node, segmentation, _ = drawn
    before = state()

    def fail(*_):
        raise RuntimeError("half-way")

    monkeypatch.setattr(results, "place_table", fail)
    for target in (segmentation, None):
        with pytest.raises(RuntimeError, match="half-way"):
            place(some_result(seed=2), node, target)
        assert state() == before


def test_a_scene_comes_back_from_its_file(drawn, tmp_path):
    node, segmentation, masks = drawn
    result = some_result()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(segmentation), study)
    rows = measures(segmentation)
    file = tmp_path / "scène 1.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(file))
    assert file.stat().st_size < 200_000  # no probabilities within
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.ReadFromMRB(str(file))

    segmentation = slicer.util.getNode("scan segmentation")
    node = slicer.util.getNode("scan")
    assert node_geometry(node).matches(GRID.mirrored(), 1e-4)  # as Slicer reads a left-handed one
    assert reference_geometry(segmentation).matches(GRID, 1e-4)
    for each in result.organs:
        expected = result.labels.array[::-1] == each.label
        np.testing.assert_array_equal(voxels(segmentation, each.name, node), expected)
        segment = segmentation.GetSegmentation().GetSegment(each.name)
        assert segment.GetTerminology() == each.terminology
    for name, mask in masks.items():
        np.testing.assert_array_equal(voxels(segmentation, name, node), mask[::-1])
    assert measures(segmentation) == rows
    assert segmentation.GetAttribute("SRCSM.Model") == "abdomen-ct"
    assert probabilities(segmentation) == {}
    # It can be updated as before.
    result = some_result(GRID.mirrored(), seed=2)
    place(result, node, segmentation)
    np.testing.assert_array_equal(voxels(segmentation, "liver", node), result.labels.array == 1)
    np.testing.assert_array_equal(voxels(segmentation, "lesion", node), masks["lesion"][::-1])


DRAWING = """
import sys
import slicer, vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(True)
if not window.SupportsOpenGL():
    sys.exit("VTK cannot draw here (on Debian: apt-get install libegl1 libgl1-mesa-dri)")
from pathlib import Path
import render_result
import scene_cases as cases
from SRCSMSegmenterLib.scene.results import place
from SRCSMSegmenterLib.scene.surfaces import make_surfaces, surfaces_of
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


def test_a_segmentation_comes_with_its_display_node(scene):
    """Slicer's widgets look for it as soon as the segmentation is in the scene."""
    displays = []

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def look(scene, event, node):
        if node.IsA("vtkMRMLSegmentationNode"):
            displays.append(node.GetDisplayNode())

    tag = scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, look)
    before = state()
    change = place(some_result(), add_volume())
    scene.RemoveObserver(tag)
    assert [display.GetClassName() for display in displays] == ["vtkMRMLSegmentationDisplayNode"]
    assert change.segmentation.GetNumberOfDisplayNodes() == 1
    change.undo()
    assert len(state()) == len(before) + len({"the volume", "its display"})
