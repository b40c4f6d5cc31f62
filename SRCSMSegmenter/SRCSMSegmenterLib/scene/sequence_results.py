# SPDX-License-Identifier: Apache-2.0
"""Segmentations of a sequence's frames in Slicer's scene, and a plot of the organs' volumes."""

from collections.abc import Sequence
from dataclasses import replace

import slicer
import vtk

from ..terminology import readable
from .aside import Aside, directly
from .changes import SceneChange
from .nodes import browser_of, sequence_of
from .results import Result, outside_scene, place_table

CHART = "SRCSM.Chart"
"""Role of a segmentation's reference to the chart of its volumes."""


def place_sequence(
    results: Sequence[Result],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    aside: Aside = directly,
) -> SceneChange:
    """Put the results of all frames of a sequence into the scene, beside the volume.

    The segmentations become a sequence in the volume's browser, so that both are played together.
    Their volumes become a table, with a chart that is shown if there is a view of plots.

    Args:
        results: of each frame, in their order.
        volume_node: shows the sequence that was segmented.
        aside: called before each frame.

    Returns:
        The change, which can be undone; its segmentation shows the browser's frame.

    Raises:
        Cancelled: `aside` raised it; nothing was changed.
    """
    change = SceneChange()
    try:
        _place_segmentations(change, results, volume_node, aside)
        shown = results[browser_of(volume_node).GetSelectedItemNumber()]
        # Certainties are of one frame; the panel measures only volumes anew.
        organs = tuple(replace(organ, least_certain=()) for organ in shown.organs)
        place_table(change, organs, volume_node, shown.labels.geometry.slice_axis)
        _place_chart(change, results, volume_node)
    except BaseException:
        change.undo()
        raise
    _show_chart(change.segmentation.GetNodeReference(CHART))
    return change


def _place_segmentations(
    change: SceneChange,
    results: Sequence[Result],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    aside: Aside,
) -> None:
    browser, images = browser_of(volume_node), sequence_of(volume_node)
    name = f"{volume_node.GetName()} segmentation"
    sequence = change.add_node("vtkMRMLSequenceNode", name)
    sequence.SetIndexName(images.GetIndexName())
    sequence.SetIndexUnit(images.GetIndexUnit())
    sequence.SetIndexType(images.GetIndexType())
    for frame, result in enumerate(results):
        aside(lambda: None, frame / len(results))
        node = outside_scene(result, sequence.GetName())
        sequence.SetDataNodeAtValue(node, images.GetNthIndexValue(frame))
    browser.AddSynchronizedSequenceNode(sequence)
    browser.SetSaveChanges(sequence, True)  # or corrections would be lost with the next frame
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    proxy = browser.GetProxyNode(sequence)
    change.segmentation = proxy

    def remove() -> None:
        scene, parts = proxy.GetScene(), [proxy, proxy.GetDisplayNode(), proxy.GetStorageNode()]
        browser.RemoveSynchronizedSequenceNode(sequence.GetID())
        for node in parts:
            if node is not None and node.GetScene() is not None:
                scene.RemoveNode(node)

    change.add(remove)
    proxy.CreateDefaultDisplayNodes()
    proxy.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    role = proxy.GetReferenceImageGeometryReferenceRole()
    proxy.SetNodeReferenceID(role, volume_node.GetID())
    change.file_beside(proxy, volume_node)


def _place_chart(
    change: SceneChange,
    results: Sequence[Result],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> None:
    """Add the table of volumes, and a chart with a curve for each organ."""
    images, proxy = sequence_of(volume_node), change.segmentation
    numeric = images.GetIndexType() == slicer.vtkMRMLSequenceNode.NumericIndex
    unit = images.GetIndexUnit() if numeric else ""
    across = f"{images.GetIndexName()} ({unit})" if unit else images.GetIndexName() or "frame"
    if not numeric:
        across = "frame"
    places = [
        float(images.GetNthIndexValue(frame)) if numeric else float(frame)
        for frame in range(len(results))
    ]
    organs = results[0].organs
    names = [f"{readable(organ.name)} (ml)" for organ in organs]
    columns = {across: places}
    for number, name in enumerate(names):
        columns[name] = [result.organs[number].volume_ml for result in results]
    table = change.add_node("vtkMRMLTableNode", f"{proxy.GetName()} volumes")
    table.SetAndObserveTable(_as_table(columns))
    chart = change.add_node("vtkMRMLPlotChartNode", f"{proxy.GetName()} volumes")
    chart.SetTitle("")
    chart.SetXAxisTitle(across)
    chart.SetYAxisTitle("volume (ml)")
    for organ, name in zip(organs, names, strict=True):
        series = change.add_node("vtkMRMLPlotSeriesNode", readable(organ.name))
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName(across)
        series.SetYColumnName(name)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetColor(*(channel / 255 for channel in organ.color))
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    change.set_reference(proxy, CHART, chart.GetID())
    change.file_beside(table, volume_node)


def _as_table(columns: dict[str, list[float]]) -> vtk.vtkTable:
    table = vtk.vtkTable()
    for name, values in columns.items():
        column = vtk.vtkDoubleArray()
        column.SetName(name)
        for value in values:
            column.InsertNextValue(round(value, 3))
        table.AddColumn(column)
    return table


def _show_chart(chart: slicer.vtkMRMLPlotChartNode) -> None:
    """Show a chart in a view of plots; without an application there is none."""
    if hasattr(slicer, "app"):
        slicer.modules.plots.logic().ShowChartInLayout(chart)
