# SPDX-License-Identifier: Apache-2.0
"""Scores of segmentations, their tables and pictures."""
