# SPDX-License-Identifier: Apache-2.0
"""The table of measures that goes with a segmentation: volumes and least certain slices."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ..terminology import readable
from .chart import follow_edit
from .nodes import BINARY, organ_segments

TABLE = "SRCSM.Table"
"""Role of a segmentation's reference to its table of measures."""

SLICES_LISTED = 5
"""Least certain slices of an organ that the table lists."""

_SLICES = "Least certain slices ({})"
"""Name of the column of slices, with the voxel axis along which they count."""


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures.

    Attributes:
        name: of the organ, as people write it (`terminology.readable`).
        least_certain: (slice, uncertainty in mm), the least certain first; the table lists the
            first `SLICES_LISTED`. Slices count from 0 along `slice_axis`.
    """

    name: str
    volume_ml: float
    least_certain: tuple[tuple[int, float], ...]


def measures(segmentation_node: slicer.vtkMRMLSegmentationNode) -> list[Measure]:
    """Read a segmentation's table of measures; empty if it has none."""
    table = _table(segmentation_node)
    names = _columns(slice_axis(segmentation_node))
    columns = [table.GetColumnByName(name) for name in names]
    if None in columns:
        return []
    rows = []
    for row in range(table.GetNumberOfRows()):
        name, volume, slices, uncertainties = (column.GetValue(row) for column in columns)
        pairs = zip(map(int, slices.split()), map(float, uncertainties.split()), strict=True)
        rows.append(Measure(name, float(volume), tuple(pairs)))
    return rows


def slice_axis(segmentation_node: slicer.vtkMRMLSegmentationNode) -> int:
    """Return the voxel axis along which a table's slices count: 0, 1 or 2 for I, J or K."""
    table = _table(segmentation_node)
    known = (
        axis for axis, letter in enumerate("IJK") if table.GetColumnByName(_SLICES.format(letter))
    )
    return next(known, 2)


def _table(segmentation_node: slicer.vtkMRMLSegmentationNode) -> vtk.vtkTable:
    node = segmentation_node.GetNodeReference(TABLE)
    return (node and node.GetTable()) or vtk.vtkTable()


def _columns(axis: int) -> tuple[str, str, str, str]:
    return ("Organ", "Volume (ml)", _SLICES.format("IJK"[axis]), "Uncertainty (mm)")


def as_table(rows: Sequence[Measure], axis: int = 2) -> vtk.vtkTable:
    """Make the table that `measures` reads.

    Args:
        axis: see `slice_axis`.
    """
    table, strings = vtk.vtkTable(), vtk.vtkStringArray
    columns = [strings(), vtk.vtkDoubleArray(), strings(), strings()]
    for name, column in zip(_columns(axis), columns, strict=True):
        column.SetName(name)
        table.AddColumn(column)
    for row in rows:
        listed = row.least_certain[:SLICES_LISTED]
        slices, uncertainties = (
            (str(number) for number, _ in listed),
            (f"{mm:.2f}" for _, mm in listed),
        )
        values = row.name, round(row.volume_ml, 3), " ".join(slices), " ".join(uncertainties)
        for column, value in zip(columns, values, strict=True):
            column.InsertNextValue(value)
    return table


def segment_ml(segment: slicer.vtkSegment) -> float:
    """Measure a segment's volume in ml by its voxels."""
    labelmap = segment.GetRepresentation(BINARY)
    scalars = labelmap and labelmap.GetPointData().GetScalars()
    if not scalars:
        return 0.0
    voxels = np.count_nonzero(vtk_to_numpy(scalars) == segment.GetLabelValue())
    return int(voxels) * float(np.prod(labelmap.GetSpacing())) / 1000


def remeasure(segmentation_node: slicer.vtkMRMLSegmentationNode, organ: str) -> bool:
    """Write an organ's volume anew into the table, and the chart, as after its segment was edited.

    Args:
        organ: its name in the table.

    Returns:
        True if the volume was another one.
    """
    segmentation, rows = segmentation_node.GetSegmentation(), measures(segmentation_node)
    row = next((n for n, each in enumerate(rows) if each.name == organ), None)
    if row is None:
        return False
    id = {readable(name): id for name, id in organ_segments(segmentation).items()}.get(organ)
    volume = segment_ml(segmentation.GetSegment(id)) if id else 0.0
    charted = follow_edit(segmentation_node, organ, volume)
    if abs(volume - rows[row].volume_ml) < 0.001:  # the table has three digits
        return charted
    rows[row] = replace(rows[row], volume_ml=volume)
    segmentation_node.GetNodeReference(TABLE).SetAndObserveTable(
        as_table(rows, slice_axis(segmentation_node))
    )
    return True


def remove_tables_with_segmentations(scene: slicer.vtkMRMLScene) -> None:
    """From now on, remove the table of a segmentation that is removed from a scene."""
    if scene not in _watched:
        _watched.add(scene)
        scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, _remove_table)


_watched: set[slicer.vtkMRMLScene] = set()


@vtk.calldata_type(vtk.VTK_OBJECT)
def _remove_table(scene: slicer.vtkMRMLScene, event: str, node: slicer.vtkMRMLNode) -> None:
    table = scene.GetNodeByID(node.GetNodeReferenceID(TABLE) or "")
    if table is not None and not scene.IsClosing():
        scene.RemoveNode(table)
