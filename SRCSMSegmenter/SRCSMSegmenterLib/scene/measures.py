# SPDX-License-Identifier: Apache-2.0
"""The table of measures that goes with a segmentation: volumes and least certain slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import slicer
import vtk

TABLE = "SRCSM.Table"
"""Role of a segmentation's reference to its table of measures."""

SLICES_LISTED = 5
"""Least certain slices of an organ that the table lists."""

_COLUMNS = ("Organ", "Volume (ml)", "Least certain slices (K)", "Uncertainty (mm)")


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures.

    Attributes:
        name: of the organ.
        least_certain: (slice k, uncertainty in mm), the least certain first; the table lists the
            first `SLICES_LISTED`.
    """

    name: str
    volume_ml: float
    least_certain: tuple[tuple[int, float], ...]


def measures(segmentation_node: slicer.vtkMRMLSegmentationNode) -> list[Measure]:
    """Read a segmentation's table of measures; empty if it has none."""
    node = segmentation_node.GetNodeReference(TABLE)
    table = node.GetTable() if node else vtk.vtkTable()
    columns = [table.GetColumnByName(name) for name in _COLUMNS]
    if None in columns:
        return []
    rows = []
    for row in range(table.GetNumberOfRows()):
        name, volume, slices, uncertainties = (column.GetValue(row) for column in columns)
        pairs = zip(map(int, slices.split()), map(float, uncertainties.split()), strict=True)
        rows.append(Measure(name, float(volume), tuple(pairs)))
    return rows


def as_table(rows: Sequence[Measure]) -> vtk.vtkTable:
    """Make the table that `measures` reads."""
    table, strings = vtk.vtkTable(), vtk.vtkStringArray
    columns = [strings(), vtk.vtkDoubleArray(), strings(), strings()]
    for name, column in zip(_COLUMNS, columns, strict=True):
        column.SetName(name)
        table.AddColumn(column)
    for row in rows:
        listed = row.least_certain[:SLICES_LISTED]
        slices, uncertainties = (str(k) for k, _ in listed), (f"{mm:.2f}" for _, mm in listed)
        values = row.name, round(row.volume_ml, 3), " ".join(slices), " ".join(uncertainties)
        for column, value in zip(columns, values, strict=True):
            column.InsertNextValue(value)
    return table
