# SPDX-License-Identifier: Apache-2.0
"""The commands of ``srcsm``, a module each; `cli` imports the one that is run."""

ENDINGS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".mha")
"""Of the files that `volume_io` writes; all but .seg.nrrd hold scans as well."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
