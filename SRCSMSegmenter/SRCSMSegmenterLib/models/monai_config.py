# SPDX-License-Identifier: Apache-2.0
"""The configuration by which MONAI's own runner segments a scan with a bundle.

    python -m monai.bundle run --bundle_root FOLDER \\
        --config_file FOLDER/configs/inference.json --image scan.nii.gz --output labels.nii.gz

It names a function of this package and is the same for every bundle. `load_bundle` does not read
it: only MONAI does, and MONAI runs what such a file names.
"""

from typing import Any

INFERENCE = "configs/inference.json"

CHOICES: dict[str, Any] = {
    "image": "scan.nii.gz",
    "output": "labels.nii.gz",
    "modality": None,
    "source_matching": "auto",
    "keep_largest": True,
    "device": "auto",
}
"""Arguments of `segment_file` that the command line may set, with their defaults."""


def inference_config() -> dict[str, Any]:
    """Make the content of `INFERENCE`."""
    return {
        "bundle_root": ".",
        **CHOICES,
        "segmentation": {
            "_target_": "SRCSMSegmenterLib.file_segmentation.segment_file",
            "model": "@bundle_root",
            **{name: f"@{name}" for name in CHOICES},
        },
        "run": ["$@segmentation"],
    }
