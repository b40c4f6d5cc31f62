# SPDX-License-Identifier: Apache-2.0
"""Corrected segmentations of the scene as training data. Main thread only."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import slicer

from ..errors import DatasetError
from ..modality import guess_modality
from .input_warnings import dicom_modality
from .nodes import OWN_SUFFIX, read_volume
from .sampling import any_mask

if TYPE_CHECKING:
    from ..training_set import AddedCase


def add_to_training_set(
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    folder: str | Path,
    segments: Sequence[str] | None = None,
    name: str | None = None,
    modality: str | None = None,
) -> "AddedCase":
    """Add a volume and its segments to the training cases of an nnU-Net raw dataset.

    The volume is written on its own grid, as it is segmented, without the transforms above it; if
    it shows a sequence, the frame that is shown. The segments are sampled on that grid.

    Args:
        folder: the dataset's; an empty or new one becomes a dataset with these segments as labels.
        segments: IDs of the segments; None for all.
        name: of the case; None takes the volume's.
        modality: "CT" or "MR"; None takes what DICOM says, else guesses.

    Raises:
        VolumeError: the volume has no voxels, or is no scalar volume.
        DatasetError: see `training_set.add_case`; nothing was changed.
    """
    from ..training_set import add_case  # SciPy and SimpleITK, when needed

    image = read_volume(volumeNode)
    segmentation = segmentationNode.GetSegmentation()
    known = segmentation.GetSegmentIDs()
    ids = known if segments is None else segments
    if unknown := [id for id in ids if id not in known]:
        raise DatasetError(f'"{segmentationNode.GetName()}" has no segment {unknown[0]}.')
    masks = (
        (
            segmentation.GetSegment(id).GetName().removesuffix(OWN_SUFFIX),
            any_mask(segmentationNode, id, volumeNode),
        )
        for id in ids
    )
    modality = modality or dicom_modality(volumeNode) or guess_modality(image.array)
    return add_case(folder, name or volumeNode.GetName(), image, masks, modality)
