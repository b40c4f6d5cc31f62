# SPDX-License-Identifier: Apache-2.0
"""Segment Anything Models: files, pixels, canvases, embeddings, masks."""
