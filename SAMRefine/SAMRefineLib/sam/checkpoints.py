# SPDX-License-Identifier: Apache-2.0
"""SAM checkpoints made by others: their kinds and sources; without torch."""

from dataclasses import dataclass

from .pixels import OFFICIAL, UNIT, PixelRule


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file made by others.

    Attributes:
        title: the name to show.
        architecture: key of segment_anything's registry.
        pixels: normalisation it was trained with.
        sha256: SHA-256 of the file; None if its authors publish none.
        file: its usual name.
        bytes: its size; None if it has no known address.
        url: address at its authors; None if there is no plain one.
        licence: licence that its authors state.
    """

    title: str
    architecture: str
    pixels: PixelRule
    sha256: str | None
    file: str
    bytes: int | None = None
    url: str | None = None
    licence: str = "Apache-2.0"


_META = "https://dl.fbaipublicfiles.com/segment_anything/"

CHECKPOINTS = {
    "vit_b": Checkpoint(
        "SAM ViT-B",
        "vit_b",
        OFFICIAL,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        _META + "sam_vit_b_01ec64.pth",
    ),
    "vit_l": Checkpoint(
        "SAM ViT-L",
        "vit_l",
        OFFICIAL,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "sam_vit_l_0b3195.pth",
        1_249_524_607,
        _META + "sam_vit_l_0b3195.pth",
    ),
    "vit_h": Checkpoint(
        "SAM ViT-H",
        "vit_h",
        OFFICIAL,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        _META + "sam_vit_h_4b8939.pth",
    ),
    "medsam": Checkpoint("MedSAM ViT-B", "vit_b", UNIT, None, "medsam_vit_b.pth"),
}
