# SPDX-License-Identifier: Apache-2.0
"""Parts of every training: loop, configuration, run folder, checkpoints, losses."""
