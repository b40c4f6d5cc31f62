# SPDX-License-Identifier: Apache-2.0
"""Between the scene and the engine, on Slicer's own nodes: exact grids, safe neighbours, undo."""

from dataclasses import replace

import numpy as np
import pytest
import slicer
import vtk
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from slicer_scene_fixture import empty_scene
from vtk.util.numpy_support import vtk_to_numpy

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.scene import nodes as slicer_scene
from SRCSMSegmenterLib.scene.nodes import (
    Measure,
    Organ,
    Result,
    frame_count,
    jump_to_slice,
    measures,
    node_geometry,
    organ_segments,
    place,
    probabilities,
    read_volume,
    reference_geometry,
)
from SRCSMSegmenterLib.terminology import segment_for, terminology_entry

pytestmark = pytest.mark.needs_slicer

GRID = oblique_left_handed((9, 7, 5))
TURN = np.array([[0.6, -0.8, 0, 12], [0.8, 0.6, 0, -7], [0, 0, 1.5, 3], [0, 0, 0, 1.0]])


@pytest.fixture
def scene():
    with empty_scene() as scene:
        yield scene


def add_volume(geometry=GRID, name="scan", array=None):
    if array is None:
        array = np.arange(np.prod(geometry.size), dtype=np.int16).reshape(geometry.shape)
    return slicer.util.addVolumeFromArray(array, geometry.affine, name)


def add_transform(node, matrix=TURN):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def organ(name, value, volume_ml=1.5, least_certain=((2, 3.25), (0, 1.5))):
    label = segment_for(name, value)
    return Organ(name, value, label.color, terminology_entry(label), volume_ml, least_certain)


def some_labels(geometry=GRID, seed=1, values=3):
    labels = np.random.default_rng(seed).integers(0, values, geometry.shape).astype(np.uint8)
    labels.flat[: values - 1] = range(1, values)  # none is absent, however small the grid
    return labels


def some_result(geometry=GRID, seed=1, **other):
    labels = some_labels(geometry, seed)
    chances = {"liver": (labels == 1).astype(np.float16), "right_kidney": labels / np.float16(2)}
    return replace(
        Result(
            Volume(labels, geometry),
            (organ("liver", 1), organ("right_kidney", 2, 0.25, ())),
            chances,
            {"Model": "abdomen-ct", "Date": "2026-11-21T04:00:00+00:00"},
        ),
        **other,
    )


def voxels(segmentation, id, volume):
    """(K, J, I) bool on the volume's grid, as Slicer finds them, transforms and all."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, id, volume) > 0


def labelmap_affine(segmentation, id):
    matrix = vtk.vtkMatrix4x4()
    labelmap = segmentation.GetSegmentation().GetSegment(id).GetRepresentation(slicer_scene.BINARY)
    labelmap.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def draw(segmentation, name, mask, volume):
    """A segment of the user's own."""
    id = segmentation.GetSegmentation().AddEmptySegment(name, name, (0.1, 0.2, 0.3))
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        mask.astype(np.uint8), segmentation, id, volume
    )
    return id


def state():
    """All that a user could notice of the scene."""
    found = {}
    nodes = slicer.util.getNodesByClass("vtkMRMLNode")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for node in nodes:
        roles = [
            node.GetNthNodeReferenceRole(n) for n in range(node.GetNumberOfNodeReferenceRoles())
        ]
        item = hierarchy.GetItemByDataNode(node)
        found[node.GetID()] = {
            "name": node.GetName(),
            "attributes": {name: node.GetAttribute(name) for name in node.GetAttributeNames()},
            "references": {role: id for role in roles if (id := node.GetNodeReferenceID(role))},
            "filed": hierarchy.GetItemName(hierarchy.GetItemParent(item)) if item else None,
        }
        # A key of the temporary store stands for what is kept there.
        found[node.GetID()]["attributes"].pop(slicer_scene.PROBABILITIES, None)
        if node.IsA("vtkMRMLSegmentationNode"):
            segmentation = node.GetSegmentation()
            found[node.GetID()]["grid"] = segmentation.GetConversionParameter(slicer_scene.GRID)
            for id in segmentation.GetSegmentIDs():
                segment, tags = segmentation.GetSegment(id), vtk.reference("")
                segment.GetTag(segment.GetTerminologyEntryTagName(), tags)
                image = slicer.vtkOrientedImageData()
                node.GetBinaryLabelmapRepresentation(id, image)
                points = [
                    image.GetPoint(n)
                    for n in range(image.GetNumberOfPoints())
                    if image.GetPointData().GetScalars().GetValue(n)
                ]
                found[node.GetID()][id] = segment.GetName(), segment.GetColor(), str(tags), points
        if node.IsA("vtkMRMLTableNode"):
            table = node.GetTable()
            found[node.GetID()]["table"] = [
                [str(table.GetValue(row, column)) for column in range(table.GetNumberOfColumns())]
                for row in range(table.GetNumberOfRows())
            ]
    return found


# volumes in


@given(geometry=geometries(max_size=5))
@settings(max_examples=40)
def test_a_volume_is_read_where_it_lies_whatever_transform_is_above_it(geometry):
    with empty_scene():
        node = add_volume(geometry)
        add_transform(node)
        volume = read_volume(node)
        assert volume.geometry.matches(geometry, 1e-9)
        np.testing.assert_array_equal(volume.array, slicer.util.arrayFromVolume(node))
        assert volume.array.shape == geometry.shape


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
)
def test_every_type_of_voxel_is_read_as_it_is(scene, dtype):
    array = np.arange(np.prod(GRID.size)).reshape(GRID.shape).astype(dtype)
    volume = read_volume(add_volume(array=array))
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, array)


def test_what_is_read_is_a_copy(scene):
    node = add_volume()
    volume = read_volume(node)
    slicer.util.arrayFromVolume(node)[:] = -5
    assert volume.array.max() == np.prod(GRID.size) - 1


def test_an_image_that_was_cut_out_lies_where_it_was(scene):
    node = add_volume()
    cut = vtk.vtkExtractVOI()
    cut.SetVOI(2, 6, 1, 3, 3, 4)
    cut.SetInputData(node.GetImageData())
    cut.Update()
    whole = slicer.util.arrayFromVolume(node).copy()
    node.SetAndObserveImageData(cut.GetOutput())
    volume = read_volume(node)
    np.testing.assert_array_equal(volume.array, whole[3:5, 1:4, 2:7])
    np.testing.assert_allclose(volume.geometry.to_ras((0, 0, 0)), GRID.to_ras((2, 1, 3)))


@pytest.mark.parametrize("kind", ["vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode"])
def test_only_scalar_volumes_are_segmented(scene, kind):
    node = slicer.mrmlScene.AddNewNodeByClass(kind, "odd one")
    with pytest.raises(VolumeError, match=r'scalar volumes.*"odd one"'):
        read_volume(node)
    with pytest.raises(VolumeError, match="nothing"):
        read_volume(None)


def test_a_volume_without_voxels_is_refused(scene):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow")
    with pytest.raises(VolumeError, match='"hollow" has no voxels'):
        read_volume(node)


def a_sequence(frames=3):
    """A volume node that shows frames 10, 11, ... and the browser; each frame is shifted."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for n in range(frames):
        affine = GRID.affine.copy()
        affine[2, 3] += n
        node = add_volume(Geometry(GRID.size, affine), f"frame {n}")
        slicer.util.arrayFromVolume(node)[:] = 10 + n
        sequence.SetDataNodeAtValue(node, str(n))
        slicer.mrmlScene.RemoveNode(node)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetProxyNode(sequence), browser


def test_any_frame_of_a_sequence_is_read_while_another_is_shown(scene):
    node, browser = a_sequence()
    assert frame_count(node) == 3
    assert frame_count(add_volume()) == 0
    frame = read_volume(node, 2)
    assert np.unique(frame.array) == [12]
    assert frame.geometry.affine[2, 3] == GRID.affine[2, 3] + 2
    assert browser.GetSelectedItemNumber() == 0
    assert np.unique(read_volume(node).array) == [10]
    for number in (-1, 3):
        with pytest.raises(VolumeError, match=f"no frame {number} .* sequence of 3"):
            read_volume(node, number)
    with pytest.raises(VolumeError, match="no frame 0"):
        read_volume(add_volume(name="still"), 0)


# results out


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
            expected = result.labels.array == each.value
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


def test_the_table_holds_volumes_and_the_least_certain_slices(scene):
    slices = tuple((k, 9.5 - k) for k in range(7))
    organs = (organ("liver", 1, 1234.56789, slices), organ("spleen", 2, 0.0, ()))
    change = place(some_result(organs=organs, probabilities={}), add_volume())
    assert measures(change.segmentation) == [
        Measure("liver", 1234.568, slices[:5]),
        Measure("spleen", 0.0, ()),
    ]
    table = change.table.GetTable()
    assert table.GetColumnByName("Volume (ml)").GetValue(0) == 1234.568
    assert table.GetColumnByName("Least certain slices (K)").GetValue(0) == "0 1 2 3 4"


def test_a_segmentation_without_a_table_has_no_measures(scene):
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert measures(segmentation) == []
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    segmentation.SetNodeReferenceID(slicer_scene.TABLE, table.GetID())
    assert measures(segmentation) == []


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


# updating


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
        expected = result.labels.array == each.value
        np.testing.assert_array_equal(voxels(segmentation, each.name, node), expected)
        np.testing.assert_allclose(labelmap_affine(segmentation, each.name), GRID.affine)
    # Nothing of the old organs is left in the layer they shared with the cyst.
    cyst = segmentation.GetSegmentation().GetSegment("cyst")
    scalars = cyst.GetRepresentation(slicer_scene.BINARY).GetPointData().GetScalars()
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


def test_an_organ_that_was_not_asked_for_again_stays(drawn):
    node, segmentation, _ = drawn
    chance = np.full(GRID.shape, 0.25, np.float16)
    result = some_result(seed=2, organs=(organ("liver", 1, 9.0),), probabilities={"liver": chance})
    place(result, node, segmentation)
    labels = some_labels()
    np.testing.assert_array_equal(voxels(segmentation, "right_kidney", node), labels == 2)
    assert [(row.name, row.volume_ml) for row in measures(segmentation)] == [
        ("liver", 9.0),
        ("right_kidney", 0.25),
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
    segmentation.GetSegmentation().SetSourceRepresentationName(slicer_scene.SURFACE)
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


def test_what_fails_half_way_leaves_no_trace(drawn, monkeypatch):
    node, segmentation, _ = drawn
    before = state()

    def fail(*_):
        raise RuntimeError("half-way")

    monkeypatch.setattr(slicer_scene, "_place_table", fail)
    for target in (segmentation, None):
        with pytest.raises(RuntimeError, match="half-way"):
            place(some_result(seed=2), node, target)
        assert state() == before


# the temporary store


def test_probabilities_live_as_long_as_the_segmentation(scene):
    node = add_volume()
    entries = slicer_scene._STORE._entries
    before = len(entries)
    result = some_result()
    change = place(result, node)
    assert dict(probabilities(change.segmentation)) == dict(result.probabilities)
    place(some_result(seed=2), node, change.segmentation)
    assert len(entries) == before + 1
    slicer.mrmlScene.RemoveNode(change.segmentation)
    assert len(entries) == before
    place(result, node)
    slicer.mrmlScene.Clear(0)
    assert len(entries) == before
    change = place(result, add_volume())
    change.undo()
    assert len(entries) == before


def test_a_result_without_probabilities_has_none(scene):
    change = place(some_result(probabilities={}), add_volume())
    assert probabilities(change.segmentation) == {}
    change.segmentation.SetAttribute(slicer_scene.PROBABILITIES, "of another session")
    assert probabilities(change.segmentation) == {}


# the scene's file


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
        expected = result.labels.array[::-1] == each.value
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


# finding the way


def test_views_jump_to_a_slice_where_its_transform_puts_it(scene):
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    node = add_volume()
    add_transform(node)
    jump_to_slice(node, 3)
    world = TURN @ (*GRID.to_ras((4, 3, 3)), 1)
    centre = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())[:3, 3]
    np.testing.assert_allclose(centre, world[:3], atol=1e-6)
