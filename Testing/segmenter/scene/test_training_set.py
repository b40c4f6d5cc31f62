# SPDX-License-Identifier: Apache-2.0
"""Corrected segmentations of the scene become cases of a dataset, on Slicer's own nodes."""

import numpy as np
import pytest
from geometries import geometries
from hypothesis import given, settings
from scene_cases import GRID, add_transform, add_volume, an_image, draw, some_result, state
from slicer_scene_fixture import empty_scene

from SRCSMSegmenterLib.errors import Cancelled, DatasetError
from SRCSMSegmenterLib.scene.results import place
from SRCSMSegmenterLib.scene.training_set import add_to_training_set
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

pytestmark = pytest.mark.needs_slicer


@given(geometry=geometries(max_size=5))
@settings(max_examples=10)
def test_the_case_has_the_scans_voxels_and_the_segments_on_its_grid(geometry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "Dataset7_Own"
    with empty_scene():
        array = an_image(geometry)
        volume = add_volume(geometry, "Scan 1", array)
        add_transform(volume)
        result = some_result(geometry)
        segmentation = place(result, volume).segmentation
        before = state()
        added = add_to_training_set(volume, segmentation, folder)
        assert state() == before
    image = read_volume(folder / "imagesTr" / "Scan_1_0000.nii.gz")
    labels = read_labels(folder / "labelsTr" / "Scan_1.nii.gz")
    assert added.name == "Scan_1"
    assert added.labels == {"liver": 1, "right_kidney": 2}
    assert np.array_equal(image.array, array)
    assert np.array_equal(labels.array, result.labels.array)
    assert image.geometry.matches(geometry)
    assert labels.geometry.matches(geometry)


def test_a_segment_counts_under_the_name_that_the_user_sees(tmp_path):
    with empty_scene():
        volume = add_volume(name="MR", array=an_image())
        segmentation = place(some_result(), volume).segmentation
        segmentation.GetSegmentation().GetSegment("liver").SetName("tumour of the liver")
        added = add_to_training_set(volume, segmentation, tmp_path)
    assert added.labels == {"tumour_of_the_liver": 1, "right_kidney": 2}


def test_an_empty_segment_says_that_the_organ_is_not_there(tmp_path):
    with empty_scene():
        volume = add_volume(name="MR", array=an_image())
        segmentation = place(some_result(), volume).segmentation
        segmentation.GetSegmentation().AddEmptySegment("spleen", "spleen", (0, 0, 1))
        added = add_to_training_set(volume, segmentation, tmp_path)
    assert added.labels == {"liver": 1, "right_kidney": 2, "spleen": 3}
    assert added.absent == ("spleen",)


def test_chosen_segments_alone_are_added_and_unknown_ones_refused(tmp_path):
    with empty_scene():
        volume = add_volume(name="MR", array=an_image())
        result = some_result()
        segmentation = place(result, volume).segmentation
        with pytest.raises(DatasetError, match="no segment bone"):
            add_to_training_set(volume, segmentation, tmp_path, segments=["bone"])
        add_to_training_set(volume, segmentation, tmp_path, segments=["right_kidney"])
    labels = read_labels(tmp_path / "labelsTr" / "MR.nii.gz").array
    assert np.array_equal(labels, (result.labels.array == 2).astype(np.uint8))


def test_overlapping_segments_are_refused(tmp_path):
    with empty_scene():
        volume = add_volume(name="MR", array=an_image())
        result = some_result()
        segmentation = place(result, volume).segmentation
        draw(segmentation, "vessel", result.labels.array == 1, volume)
        count = np.count_nonzero(result.labels.array == 1)
        with pytest.raises(DatasetError, match=f"vessel overlaps liver in {count} voxels"):
            add_to_training_set(volume, segmentation, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_segmentation_made_of_surfaces_is_sampled_and_stays_as_it_is(tmp_path):
    with empty_scene():
        volume = add_volume(name="MR", array=an_image())
        block = np.zeros(GRID.shape, bool)
        block[1:4, 2:5, 2:7] = True
        drawn = place(some_result(), volume).segmentation
        drawn.GetSegmentation().RemoveAllSegments()
        draw(drawn, "liver", block, volume)
        drawn.GetSegmentation().SetConversionParameter("Smoothing factor", "0")
        drawn.CreateClosedSurfaceRepresentation()
        drawn.GetSegmentation().SetSourceRepresentationName("Closed surface")
        drawn.GetSegmentation().RemoveRepresentation("Binary labelmap")
        add_to_training_set(volume, drawn, tmp_path)
        assert not drawn.GetSegmentation().ContainsRepresentation("Binary labelmap")
    labels = read_labels(tmp_path / "labelsTr" / "MR.nii.gz").array
    assert np.count_nonzero(labels) > 0.5 * np.count_nonzero(block)


@pytest.mark.parametrize("piece", [0, 3, -1])
def test_cancelling_adds_nothing(tmp_path, piece):
    """Nor does the thread that writes when it is cancelled (the last piece)."""
    late = []

    def aside(function, done=None):
        aside.pieces += 1
        if aside.pieces == piece + 1 or (done == 1.0):
            late.append(function)
            raise Cancelled("Stopped.")
        return function()

    aside.pieces = 0
    with empty_scene():
        volume = add_volume(name="MR", array=an_image())
        segmentation = place(some_result(), volume).segmentation
        with pytest.raises(Cancelled):
            add_to_training_set(volume, segmentation, tmp_path / "set", aside=aside)
    if piece == -1:
        with pytest.raises(Cancelled):
            late[0]()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
