# SPDX-License-Identifier: Apache-2.0
"""Voxels of segments: images of labels that segments share, and putting others in their place."""

from collections.abc import Collection, Mapping

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..geometry import Geometry, Volume
from .aside import Aside, directly
from .nodes import BINARY

Labelmap = tuple[slicer.vtkOrientedImageData, int]
"""An image, and the value that a segment's voxels have in it."""


def layer(labels: Volume) -> slicer.vtkOrientedImageData:
    """Make one image of all organs, as Slicer shares one among segments that do not overlap."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(labels.geometry.size)
    image.GetPointData().SetScalars(numpy_to_vtk(labels.array.ravel(), deep=True))
    image.SetGeometryFromImageToWorldMatrix(_matrix(labels.geometry))
    return image


def grid_parameter(geometry: Geometry) -> str:
    """Write a grid as the conversion parameter `nodes.GRID` has it."""
    extent = [end for size in geometry.size for end in (0, size - 1)]
    return slicer.vtkSegmentationConverter.SerializeImageGeometry(_matrix(geometry), extent)


def _matrix(geometry: Geometry) -> vtk.vtkMatrix4x4:
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(geometry.affine.ravel())
    return matrix


def kept_labelmaps(
    segmentation: slicer.vtkSegmentation, ids: Collection[str], aside: Aside = directly
) -> dict[str, Labelmap]:
    """Return the voxels of segments that are about to be replaced, by ID.

    An image that only these segments share is returned as it is: nobody will change it. From one
    that others share, their voxels are copied.
    """
    shared = [id for id in ids if _others(segmentation, id, ids)]
    whole = {id: segmentation.GetSegment(id) for id in ids if id not in shared}
    return {
        id: (segment.GetRepresentation(BINARY), segment.GetLabelValue())
        for id, segment in whole.items()
    } | own_labelmaps(segmentation, shared, aside)


def own_labelmaps(
    segmentation: slicer.vtkSegmentation, ids: Collection[str], aside: Aside = directly
) -> dict[str, Labelmap]:
    """Copy the voxels of segments, each to an image of 0 and 1 of its own, cropped to them."""
    own, blocks = {}, {}
    for id in ids:
        segment = segmentation.GetSegment(id)
        image, label = segment.GetRepresentation(BINARY), segment.GetLabelValue()
        if image not in blocks:
            blocks[image] = aside(lambda image=image: _blocks(image))
        own[id] = _cropped(image, label, blocks[image].get(label)), 1
    return own


def replace_labelmaps(
    segmentation: slicer.vtkSegmentation,
    labelmaps: Mapping[str, Labelmap],
    aside: Aside = directly,
) -> None:
    """Give segments other voxels; segments that were removed meanwhile are left out."""
    for id, (image, label) in labelmaps.items():
        segment = segmentation.GetSegment(id)
        if segment is None:
            continue
        if _others(segmentation, id, labelmaps):
            aside(lambda: None)
            segmentation.ClearSegment(id)  # from a layer that others share, its voxels alone
        segment.RemoveAllRepresentations()
        segment.SetLabelValue(label)
        segment.AddRepresentation(BINARY, image)


def remove_segments(segmentation: slicer.vtkSegmentation, ids: Collection[str]) -> None:
    """Remove segments that are still there."""
    there = [id for id in ids if segmentation.GetSegment(id) is not None]
    alone = [id for id in there if not _others(segmentation, id, there)]
    for id in alone:  # or Slicer clears the voxels of each in an image that nobody needs
        segmentation.GetSegment(id).RemoveAllRepresentations()
    for id in there:
        segmentation.RemoveSegment(id)


def _others(segmentation: slicer.vtkSegmentation, id: str, ids: Collection[str]) -> bool:
    """Tell whether segments beside these share the image of one."""
    image = segmentation.GetSegment(id).GetRepresentation(BINARY)
    return any(
        segmentation.GetSegment(other).GetRepresentation(BINARY) is image
        for other in segmentation.GetSegmentIDs()
        if other not in ids
    )


def _array(image: slicer.vtkOrientedImageData) -> np.ndarray | None:
    """Return a view of an image's voxels, (K, J, I); None if it has none."""
    scalars = image.GetPointData().GetScalars()
    return scalars and vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1])


def _blocks(image: slicer.vtkOrientedImageData) -> dict[int, tuple[slice, slice, slice]]:
    """Find the smallest block of each label of an image."""
    from scipy.ndimage import find_objects  # when needed: Slicer loads this file at its start

    array = _array(image)
    if array is None:
        return {}
    array = array if array.dtype.kind in "iu" else array.astype(np.int32)
    blocks = enumerate(find_objects(array), start=1)
    return {label: block for label, block in blocks if block is not None}


def _cropped(
    image: slicer.vtkOrientedImageData, label: int, block: tuple[slice, slice, slice] | None
) -> slicer.vtkOrientedImageData:
    """Copy a label to an image of 0 and 1 of its own; without a block, one of no voxels."""
    matrix, own = vtk.vtkMatrix4x4(), slicer.vtkOrientedImageData()
    image.GetImageToWorldMatrix(matrix)
    own.SetGeometryFromImageToWorldMatrix(matrix)
    if block is None:
        own.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)  # Slicer makes no surface of no array
    else:
        first = image.GetExtent()[::2]
        ends = [(at.start + n, at.stop - 1 + n) for at, n in zip(block[::-1], first, strict=True)]
        own.SetExtent(*sum(ends, ()))
        mask = _array(image)[block] == label
        own.GetPointData().SetScalars(numpy_to_vtk(mask.ravel().astype(np.uint8), deep=True))
    return own
