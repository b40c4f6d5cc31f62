# SPDX-License-Identifier: Apache-2.0
"""Corrected segmentations of the scene as training data. Main thread only."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import slicer

from ..errors import Cancelled, DatasetError
from ..modality import guess_modality
from .aside import Aside, directly
from .input_warnings import dicom_modality
from .nodes import OWN_SUFFIX, read_volume
from .sampling import any_mask_slabs

if TYPE_CHECKING:
    from ..training_set import AddedCase


def add_to_training_set(
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    folder: str | Path,
    segments: Sequence[str] | None = None,
    name: str | None = None,
    modality: str | None = None,
    aside: Aside = directly,
) -> "AddedCase":
    """Add a volume and its segments to the training cases of an nnU-Net raw dataset.

    The volume is written on its own grid, as it is segmented, without the transforms above it; if
    it shows a sequence, the frame that is shown. The segments are sampled on that grid.

    Args:
        folder: the dataset's; an empty or new one becomes a dataset with these segments as labels.
        segments: IDs of the segments; None for all.
        name: of the case; None takes the volume's.
        modality: "CT" or "MR"; None takes what DICOM says, else guesses.
        aside: runs what takes long.

    Raises:
        Cancelled: `aside` raised it; nothing was added.
        VolumeError: the volume has no voxels, or is no scalar volume.
        DatasetError: see `training_set.add_case`; nothing was changed.
    """
    from ..training_set import add_case  # SciPy and SimpleITK, when needed

    segmentation = segmentationNode.GetSegmentation()
    known = segmentation.GetSegmentIDs()
    ids = known if segments is None else segments
    if unknown := [id for id in ids if id not in known]:
        raise DatasetError(f'"{segmentationNode.GetName()}" has no segment {unknown[0]}.')
    image = read_volume(volumeNode, aside=aside)
    packed: list[list[np.ndarray]] = []
    for number, id in enumerate(ids):
        packed.append([])
        for slab in any_mask_slabs(segmentationNode, id, volumeNode):
            packed[-1].append(np.packbits(slab, axis=-1))
            aside(lambda: None, 0.5 * number / len(ids))
    names = [segmentation.GetSegment(id).GetName().removesuffix(OWN_SUFFIX) for id in ids]
    columns = image.array.shape[-1]
    masks = (
        (organ, np.unpackbits(np.concatenate(slabs), axis=-1, count=columns).view(bool))
        for organ, slabs in zip(names, packed, strict=True)
    )
    name = name or volumeNode.GetName()
    modality = modality or dicom_modality(volumeNode) or guess_modality(image.array)
    stopped = threading.Event()
    try:
        return aside(lambda: add_case(folder, name, image, masks, modality, stopped.is_set), 1.0)
    except Cancelled:
        stopped.set()  # the thread that writes goes on until it asks
        raise
