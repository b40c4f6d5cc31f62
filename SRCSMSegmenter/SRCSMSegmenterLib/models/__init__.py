# SPDX-License-Identifier: Apache-2.0
"""Trained networks: their folders, the integrity of those, and their catalogue."""
