# SPDX-License-Identifier: Apache-2.0
"""The panel's state, kept in the scene and saved with it."""

import enum
from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Minimum, parameterNodeWrapper

FRAME_SHOWN = -1


class SourceMatching(enum.Enum):
    """Choices of source matching; the values are those of the logic."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"

    def label(self) -> str:
        """Return the text that the panel shows."""
        return {"auto": _("Automatic"), "on": _("On"), "off": _("Off")}[self.value]


class Device(enum.Enum):
    """Choices of a device; the values are those of `devices.resolve_device`."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"

    def label(self) -> str:
        """Return the text that the panel shows."""
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
        frame: number of the frame, from 0, if the volume shows a sequence.
        allFrames: segment every frame of the sequence instead.
        model: name of a shipped network or folder of one of the user's.
        skippedOrgans: organs not wanted, by name; so those of another model are all wanted.
        refine: let SAM redraw the organs, if there is one.
        outputSegmentation: to be updated; None makes a new one.
        show3D: show the surfaces of results.
        result: the segmentation that the panel shows the numbers of.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    frame: Annotated[int, Minimum(FRAME_SHOWN)] = FRAME_SHOWN
    allFrames: bool = False
    model: str = "abdomen-ct"
    skippedOrgans: list[str]
    refine: bool = True
    outputSegmentation: vtkMRMLSegmentationNode
    sourceMatching: SourceMatching = SourceMatching.AUTO
    device: Device = Device.AUTO
    keepLargest: bool = True
    show3D: bool = False
    result: vtkMRMLSegmentationNode
