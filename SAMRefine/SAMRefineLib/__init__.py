# SPDX-License-Identifier: Apache-2.0
"""The computing behind SAMRefine: coarse masks, boxes, SAM masks; Slicer in scene and panel."""

from SRCSMSegmenterLib.public_names import public_names

PUBLIC = {
    "SamModel": "sam.models",
    "SliceGrid": "boxes.boxes",
    "load_sam": "sam.models",
    "refine_segmentation": "refine.after_segmentation",
}
"""Public names, and the module of each; they are imported when they are asked for."""

__all__ = [*PUBLIC]
__getattr__, __dir__ = public_names(__name__, PUBLIC)
