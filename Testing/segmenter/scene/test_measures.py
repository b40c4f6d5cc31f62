# SPDX-License-Identifier: Apache-2.0
"""The table of measures says what was found, and is absent if there is none."""

import numpy as np
import pytest
import slicer
from scene_cases import add_volume, draw, organ, some_result, voxels

from SRCSMSegmenterLib.scene.measures import TABLE, Measure, measures, remeasure, segment_ml
from SRCSMSegmenterLib.scene.results import place

pytestmark = pytest.mark.needs_slicer


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
    segmentation.SetNodeReferenceID(TABLE, table.GetID())
    assert measures(segmentation) == []


def test_a_volume_is_measured_anew_after_editing(scene):
    volume = add_volume()
    change = place(some_result(probabilities={}), volume)
    node = change.segmentation
    segment = node.GetSegmentation().GetSegment("liver")
    mask, voxel_ml = voxels(node, "liver", volume), 0.001 * np.prod(volume.GetSpacing())
    assert segment_ml(segment) == pytest.approx(mask.sum() * voxel_ml)
    assert remeasure(node, "liver")  # the table had what the result said
    assert not remeasure(node, "liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        (mask & (np.arange(9) < 4)).astype(np.uint8), node, "liver", volume
    )
    assert remeasure(node, "liver")
    rows = {row.name: row for row in measures(node)}
    assert rows["liver"].volume_ml == pytest.approx(mask[:, :, :4].sum() * voxel_ml, abs=5e-4)
    assert rows["liver"].least_certain == ((2, 3.25), (0, 1.5))
    assert rows["right kidney"].volume_ml == 0.25
    node.GetSegmentation().RemoveSegment("liver")
    assert remeasure(node, "liver")
    assert measures(node)[0].volume_ml == 0
    assert not remeasure(node, "an organ that is not in the table")


def test_the_table_goes_with_its_segmentation(scene):
    tables = []
    for _ in range(2):
        change = place(some_result(probabilities={}), add_volume())
        tables.append(change.table)
    slicer.mrmlScene.RemoveNode(change.segmentation)
    assert [table.GetScene() is None for table in tables] == [False, True]


def test_a_change_knows_whether_its_segments_were_edited_since(scene):
    volume = add_volume()
    change = place(some_result(), volume)
    assert not change.edited_since
    change.segmentation.CreateClosedSurfaceRepresentation()
    change.segmentation.GetSegmentation().GetSegment("liver").SetColor(1, 0, 0)
    assert not change.edited_since
    id = draw(change.segmentation, "lesion", voxels(change.segmentation, "liver", volume), volume)
    assert change.edited_since
    change.segmentation.GetSegmentation().RemoveSegment(id)
    slicer.mrmlScene.RemoveNode(change.segmentation)
    assert not change.edited_since
