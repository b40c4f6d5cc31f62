# SPDX-License-Identifier: Apache-2.0
"""The computing behind SRCSMSegmenter: plain arrays and geometries, Slicer in scene, panel."""
