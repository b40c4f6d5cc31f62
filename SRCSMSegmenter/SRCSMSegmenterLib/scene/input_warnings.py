# SPDX-License-Identifier: Apache-2.0
"""Warnings about a volume that does not look like what a model expects."""

import numpy as np
import slicer

from ..geometry import Geometry
from ..modality import doubts, guess_modality
from ..models.catalogue import ModelCard
from . import nodes

SMALLEST_MM = 40.0
"""An organ of the trunk does not fit into less."""

LARGEST_MM = 900.0
"""A longer volume shows more than the trunk."""

COARSEST_MM = 12.0
"""Slices further apart give coarse results."""

TURNED_DEGREES = 30.0
"""Training turns scans by up to 20 degrees."""


def input_warnings(
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    card: ModelCard,
    source_matching: str = "auto",
    modality: str | None = None,
    frame: int | None = None,
) -> list[str]:
    """List in sentences how a volume differs from what a model expects.

    Args:
        card: the model's.
        source_matching, modality, frame: see `logic.segment`.
    """
    node = nodes.frame_node(volume_node, frame)
    geometry, image = nodes.node_geometry(node), node.GetImageData()
    span = np.array(image.GetScalarRange())
    span = span if "float" in image.GetScalarTypeAsString() else span.astype(np.int64)
    modality = (
        modality or dicom_modality(volume_node) or guess_modality(slicer.util.arrayFromVolume(node))
    )
    warnings = []
    if modality not in ("CT", "MR"):
        warnings.append(f"DICOM says {modality}; the networks know CT and MR.")
    else:
        warnings += doubts(modality, span)
    if modality != card.modality and source_matching == "off":
        warnings.append(
            f"This looks like {modality}, the network learned from {card.modality}: switch source "
            "matching on, or leave it automatic."
        )
    warnings += _extent_warnings(geometry)
    if turned_degrees(volume_node) > TURNED_DEGREES:
        warnings.append(
            "A transform turns the volume. The network sees it as it is stored: if that is not how "
            "the patient lay, harden the transform first."
        )
    return warnings


def _extent_warnings(geometry: Geometry) -> list[str]:
    extent, warnings = geometry.size * geometry.spacing, []
    if extent.min() < SMALLEST_MM:
        warnings.append(
            f"The volume is only {extent.min():.0f} mm thick; organs that are cut off are often "
            "missed."
        )
    if extent.max() > LARGEST_MM:
        warnings.append(
            f"The volume is {extent.max():.0f} mm long; crop it to the organs to be faster and to "
            "find fewer of them in wrong places."
        )
    if geometry.spacing.max() > COARSEST_MM:
        warnings.append(
            f"The slices are {geometry.spacing.max():.0f} mm apart; expect coarse results."
        )
    return warnings


def dicom_modality(volume_node: slicer.vtkMRMLScalarVolumeNode) -> str | None:
    """Return the modality DICOM states, such as "CT"; None if the volume is not from DICOM."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volume_node)
    return (item and hierarchy.GetItemAttribute(item, "DICOM.Modality")) or None


def turned_degrees(volume_node: slicer.vtkMRMLScalarVolumeNode) -> float:
    """Compute by how much the transforms above a volume turn it at its middle, in degrees.

    Mirroring counts as 180 degrees.
    """
    geometry = nodes.node_geometry(volume_node)
    moved = []
    for point in (geometry.centre, *(geometry.centre + np.eye(3))):
        world = [0.0, 0.0, 0.0]
        volume_node.TransformPointToWorld(point, world)
        moved.append(world)
    u, _, vt = np.linalg.svd((np.array(moved[1:]) - moved[0]).T)
    if np.linalg.det(u @ vt) < 0:
        return 180.0
    return float(np.degrees(np.arccos(np.clip((np.trace(u @ vt) - 1) / 2, -1, 1))))
