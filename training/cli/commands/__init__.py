# SPDX-License-Identifier: Apache-2.0
"""The commands of ``srcsm``, a module each; `cli` imports the one that is run."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
