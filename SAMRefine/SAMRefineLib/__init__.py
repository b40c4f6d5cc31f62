# SPDX-License-Identifier: Apache-2.0
"""The computing behind SAMRefine: coarse masks, boxes, SAM masks; Slicer in scene and panel."""

from typing import TYPE_CHECKING

from SRCSMSegmenterLib.public_names import public_names

PUBLIC = {
    "SamModel": "sam.models",
    "SliceGrid": "boxes.boxes",
    "load_sam": "sam.models",
    "refine_segmentation": "refine.after_segmentation",
}
"""Public names, and the module of each; they are imported when they are asked for."""

if TYPE_CHECKING:  # the same names for type checkers, which do not see `__getattr__`'s
    from .boxes.boxes import SliceGrid as SliceGrid
    from .refine.after_segmentation import refine_segmentation as refine_segmentation
    from .sam.models import SamModel as SamModel
    from .sam.models import load_sam as load_sam

__all__ = [*PUBLIC]
__getattr__, __dir__ = public_names(__name__, PUBLIC)
