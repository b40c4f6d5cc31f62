# SPDX-License-Identifier: Apache-2.0
"""Boxes, coarse masks and their undo history on the slices of a scan."""
