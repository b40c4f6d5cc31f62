# SPDX-License-Identifier: Apache-2.0
"""The table of measures says what was found, and is absent if there is none."""

import pytest
import slicer
from scene_cases import add_volume, organ, some_result

from SRCSMSegmenterLib.scene.measures import TABLE, Measure, measures
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
