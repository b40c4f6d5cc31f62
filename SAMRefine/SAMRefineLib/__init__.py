# SPDX-License-Identifier: Apache-2.0
"""The computing behind SAMRefine: coarse masks, boxes, SAM masks; Slicer in scene and panel."""
