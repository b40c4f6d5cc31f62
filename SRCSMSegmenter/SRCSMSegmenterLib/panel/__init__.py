# SPDX-License-Identifier: Apache-2.0
"""The panel of SRCSMSegmenter, and the parts that it shares with that of SAM Refine."""
