# SPDX-License-Identifier: Apache-2.0
"""Trained networks: their folders, their integrity, and which ones there are."""
