# SPDX-License-Identifier: Apache-2.0
"""The work on Slicer's scene: refine sessions, ROIs, points, segments."""
