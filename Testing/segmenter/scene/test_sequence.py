# SPDX-License-Identifier: Apache-2.0
"""Sequences through the real worker: every frame as it would be found alone, played with the
volume, and its volumes as curves; cancelled or failed, the scene stays as it was.
"""

import numpy as np
import pytest
import slicer
import vtk
from scene_cases import GRID, a_scan, add_transform, add_volume, an_image, state, voxels
from vtk.util.numpy_support import vtk_to_numpy

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.scene.chart import CHART
from SRCSMSegmenterLib.scene.logic import segment
from SRCSMSegmenterLib.scene.measures import measures, remeasure
from SRCSMSegmenterLib.scene.nodes import browser_of, sequence_of
from SRCSMSegmenterLib.scene.sequence import segment_sequence
from SRCSMSegmenterLib.worker.protocol import WorkerError

pytestmark = [pytest.mark.needs_slicer, pytest.mark.usefixtures("one_worker")]

TIMES = ("0", "40", "80.5")


def a_cine(times=TIMES, index=slicer.vtkMRMLSequenceNode.NumericIndex):
    """A volume that shows frames in which the organs shrink, at 0, 40 and 80.5 ms."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("ms")
    sequence.SetIndexType(index)
    for n, time in enumerate(times):
        node = add_volume(GRID, "frame", (an_image(seed=n) - 25 * n).astype(np.int16))
        sequence.SetDataNodeAtValue(node, time)
        slicer.mrmlScene.RemoveNode(node)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetProxyNode(sequence)


def show(volume, frame):
    browser = browser_of(volume)
    browser.SetSelectedItemNumber(frame)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)


def organs(segmentation, volume):
    return {name: voxels(segmentation, name, volume) for name in ("liver", "spleen")}


def test_every_frame_is_found_as_it_is_alone_and_played_with_the_volume(scene, model):
    volume = a_cine()
    transform = add_transform(volume)
    show(volume, 1)
    segmentation = segment_sequence(volume, model=model)
    assert segmentation.GetTransformNodeID() == transform.GetID()
    assert segmentation.GetDisplayNode() is not None
    assert browser_of(segmentation) is browser_of(volume)
    assert sequence_of(segmentation).GetNumberOfDataNodes() == len(TIMES)
    shown = sequence_of(segmentation)
    assert [shown.GetNthIndexValue(n) for n in range(len(TIMES))] == list(TIMES)
    alone = [segment(volume, model=model, frame=frame) for frame in range(len(TIMES))]
    for frame in (0, 2, 1):
        show(volume, frame)
        found, expected = organs(segmentation, volume), organs(alone[frame], volume)
        assert found["spleen"].any()
        assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_a_correction_of_a_frame_stays_when_another_is_shown(scene, model):
    volume = a_cine()
    segmentation = segment_sequence(volume, model=model)
    show(volume, 1)
    corrected = np.zeros(GRID.shape, np.uint8)
    corrected[1:3, 2:5, 1:4] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(corrected, segmentation, "spleen", volume)
    before = organs(segmentation, volume)
    show(volume, 2)
    assert not np.array_equal(voxels(segmentation, "spleen", volume), corrected)
    show(volume, 1)
    assert np.array_equal(voxels(segmentation, "spleen", volume), corrected)
    assert np.array_equal(voxels(segmentation, "liver", volume), before["liver"])


def test_the_table_is_of_the_frame_that_is_shown(scene, model):
    volume = a_cine()
    show(volume, 1)
    segmentation = segment_sequence(volume, model=model)
    for frame in (1, 2):
        show(volume, frame)
        for row in measures(segmentation):
            remeasure(segmentation, row.name)  # as the panel does when segments change
        found = organs(segmentation, volume)
        for row in measures(segmentation):
            expected = np.count_nonzero(found[row.name]) * GRID.voxel_ml
            assert row.volume_ml == pytest.approx(expected, abs=1e-3)
            assert row.least_certain == ()


def test_volumes_over_time_are_a_table_and_a_chart(scene, model):
    volume = a_cine()
    segmentation = segment_sequence(volume, model=model)
    chart = segmentation.GetNodeReference(CHART)
    assert (chart.GetXAxisTitle(), chart.GetYAxisTitle()) == ("time (ms)", "volume (ml)")
    curves = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
    assert [curve.GetName() for curve in curves] == ["liver", "spleen"]
    volumes = {"liver": [], "spleen": []}
    for frame in range(len(TIMES)):
        show(volume, frame)
        for name, mask in organs(segmentation, volume).items():
            volumes[name].append(np.count_nonzero(mask) * GRID.voxel_ml)
    for curve in curves:
        table = curve.GetTableNode().GetTable()
        x, y = (
            vtk_to_numpy(table.GetColumnByName(name))
            for name in (curve.GetXColumnName(), curve.GetYColumnName())
        )
        np.testing.assert_allclose(x, [0, 40, 80.5])
        np.testing.assert_allclose(y, volumes[curve.GetName()], atol=1e-3)
        assert len(set(y)) == len(TIMES)


def test_a_correction_of_a_frame_moves_its_point_in_the_chart_and_no_other(scene, model):
    volume = a_cine()
    segmentation = segment_sequence(volume, model=model)
    table = segmentation.GetNodeReference(CHART).GetNthPlotSeriesNode(1).GetTableNode()
    curves = lambda: {  # noqa: E731
        name: vtk_to_numpy(table.GetTable().GetColumnByName(f"{name} (ml)")).copy()
        for name in ("liver", "spleen")
    }
    before, told = curves(), []
    show(volume, 1)
    for name in before:
        remeasure(segmentation, name)
    assert all((curves()[name] == before[name]).all() for name in before)
    corrected = np.zeros(GRID.shape, np.uint8)
    corrected[1:3, 2:5, 1:4] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(corrected, segmentation, "spleen", volume)
    table.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: told.append(1))
    assert remeasure(segmentation, "spleen")
    assert told
    expected = before["spleen"].copy()
    expected[1] = 18 * GRID.voxel_ml
    np.testing.assert_allclose(curves()["spleen"], expected, atol=1e-3)
    np.testing.assert_array_equal(curves()["liver"], before["liver"])


def test_frames_without_numbers_are_counted(scene, model):
    volume = a_cine(("early", "late"), slicer.vtkMRMLSequenceNode.TextIndex)
    chart = segment_sequence(volume, model=model).GetNodeReference(CHART)
    table = chart.GetNthPlotSeriesNode(0).GetTableNode().GetTable()
    assert chart.GetXAxisTitle() == "frame"
    np.testing.assert_allclose(vtk_to_numpy(table.GetColumnByName("frame")), [0, 1])


def test_progress_is_of_all_frames_and_messages_name_the_frames(scene, model):
    volume, steps, ended = a_cine(), [], []
    run = segment_sequence(
        volume,
        model=model,
        organs=["spleen"],
        progress=lambda stage, fraction, left: steps.append(fraction),
        done=ended.append,
        wait=False,
    )
    run.wait()
    assert ended == [run]
    assert run.error is None
    assert steps == sorted(steps)
    assert 0 <= steps[0] < 1 / 3
    assert steps[-1] == pytest.approx(1.0)
    assert list(run.segmentationNode.GetSegmentation().GetSegmentIDs()) == ["spleen"]
    assert len(run.messages) == len(set(run.messages))


def test_undo_leaves_the_scene_as_it_was(scene, model):
    volume = a_cine()
    before = state()
    run = segment_sequence(volume, model=model, wait=False)
    run.wait()
    assert state() != before
    run.undo()
    assert state() == before
    assert browser_of(volume).GetNumberOfSynchronizedSequenceNodes(True) == 1
    show(volume, 2)  # the browser still plays


@pytest.mark.parametrize("frames_done", [0, 1])
def test_cancelling_leaves_the_scene_as_it_was(scene, model, frames_done):
    volume = a_cine()
    before = state()

    def cancel(stage, fraction, left):
        if fraction >= frames_done / 3 + 0.01:
            run.cancel()

    run = segment_sequence(volume, model=model, progress=cancel, wait=False)
    with pytest.raises(WorkerError, match="was cancelled; nothing was changed"):
        run.wait()
    assert state() == before


def test_a_sequence_that_vanishes_meanwhile_is_a_sentence(scene, model):
    volume = a_cine()
    run = segment_sequence(volume, model=model, wait=False)
    scene.RemoveNode(browser_of(volume))
    with pytest.raises(WorkerError, match="was changed or removed"):
        run.wait()


def test_a_frame_that_cannot_be_used_leaves_the_scene_as_it_was(scene, model):
    volume = a_cine()
    frame = sequence_of(volume).GetNthDataNode(1)
    slicer.util.arrayFromVolume(frame)[:] = 0
    before = state()
    with pytest.raises(WorkerError, match="Frame 1: An MR volume needs a positive maximum"):
        segment_sequence(volume, model=model, sourceMatching="on")
    assert state() == before


def test_without_a_sequence_it_says_so(scene, model):
    with pytest.raises(VolumeError, match="shows no sequence"):
        segment_sequence(a_scan(), model=model)
