# SPDX-License-Identifier: Apache-2.0
"""What the user chose in the panel, kept in the scene and saved with it."""

import enum
from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Minimum, parameterNodeWrapper

FRAME_SHOWN = -1


class SourceMatching(enum.Enum):
    """The values are the logic's."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"

    def label(self) -> str:
        """As the panel writes it."""
        return {"auto": _("Automatic"), "on": _("On"), "off": _("Off")}[self.value]


class Device(enum.Enum):
    """The values are those of `devices.resolve_device`."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"

    def label(self) -> str:
        """As the panel writes it."""
        return {
            "auto": _("Automatic (the fastest there is)"),
            "cpu": _("Processor (CPU)"),
            "cuda": _("NVIDIA GPU (CUDA)"),
            "mps": _("Apple GPU (Metal)"),
        }[self.value]


@parameterNodeWrapper
class Parameters:
    """The panel's state.

    Attributes:
        frame: number of the frame, from 0, where the volume is one of a sequence.
        model: name of a shipped network or folder of one of the user's.
        skippedOrgans: organs not wanted, by name; so those of another model are all wanted.
        outputSegmentation: to be updated; None makes a new one.
        result: the segmentation that the panel shows the numbers of.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    frame: Annotated[int, Minimum(FRAME_SHOWN)] = FRAME_SHOWN
    model: str = "abdomen-ct"
    skippedOrgans: list[str]
    outputSegmentation: vtkMRMLSegmentationNode
    sourceMatching: SourceMatching = SourceMatching.AUTO
    device: Device = Device.AUTO
    keepLargest: bool = True
    show3D: bool = False
    result: vtkMRMLSegmentationNode
