# SPDX-License-Identifier: Apache-2.0
"""The panel of SRCSMSegmenter, and what it shares with that of SAM Refine."""
