# SPDX-License-Identifier: Apache-2.0
"""Training of SAMs and of the SAM paper's coarse network."""
