# SPDX-License-Identifier: Apache-2.0
"""A chart of the organs' volumes over the frames of a sequence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import slicer
import vtk

from ..terminology import readable
from .changes import SceneChange
from .nodes import browser_of, sequence_of

if TYPE_CHECKING:
    from .result import Result

CHART = "SRCSM.Chart"
"""Role of a segmentation's reference to the chart of its volumes."""


def place_chart(
    change: SceneChange,
    results: Sequence["Result"],
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
    names = [_column(readable(organ.name)) for organ in organs]
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


def show_chart(chart: slicer.vtkMRMLPlotChartNode) -> None:
    """Show a chart in a view of plots; without an application there is none."""
    if hasattr(slicer, "app"):
        slicer.modules.plots.logic().ShowChartInLayout(chart)


def follow_edit(
    segmentation_node: slicer.vtkMRMLSegmentationNode, organ: str, volume_ml: float
) -> bool:
    """Write an organ's volume in the frame that is shown into the chart, if there is one.

    Args:
        organ: its name in the chart.

    Returns:
        True if the volume was another one.
    """
    chart = segmentation_node.GetNodeReference(CHART)
    browser = browser_of(segmentation_node)
    if chart is None or browser is None:
        return False
    for number in range(chart.GetNumberOfPlotSeriesNodes()):
        table = chart.GetNthPlotSeriesNode(number).GetTableNode()
        column = table and table.GetTable().GetColumnByName(_column(organ))
        frame = browser.GetSelectedItemNumber()
        if column and frame < column.GetNumberOfTuples():
            if abs(column.GetValue(frame) - volume_ml) < 0.001:  # the table has three digits
                return False
            column.SetValue(frame, round(volume_ml, 3))
            table.GetTable().Modified()
            table.Modified()
            return True
    return False


def _column(organ: str) -> str:
    """Return the name of an organ's column in the table of the chart."""
    return f"{organ} (ml)"
