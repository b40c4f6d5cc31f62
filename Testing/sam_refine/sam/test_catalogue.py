# SPDX-License-Identifier: Apache-2.0
"""The catalogue of SAMs and their cards, without torch."""

import subprocess
import sys

import pytest

from SAMRefineLib.sam.catalogue import (
    checkpoint_card,
    default_for,
    find_sams,
    kind_of,
    megabytes,
    read_sam_card,
)
from SAMRefineLib.sam.checkpoints import CHECKPOINTS
from SAMRefineLib.sam.downloads import host
from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder


def test_nothing_of_it_imports_torch_or_slicer():
    code = (
        "import sys, SAMRefineLib.sam.catalogue, SAMRefineLib.sam.downloads; print('torch' in "
        "sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"


def test_downloadable_checkpoints_say_all_that_a_user_is_told():
    for kind, entry in CHECKPOINTS.items():
        if entry.url:
            assert entry.url.startswith("https://")
            assert entry.url.endswith(entry.file)
            assert len(entry.sha256) == 64
            assert kind_of(entry.sha256) == kind
            assert host(entry.url) == "dl.fbaipublicfiles.com"
            assert entry.licence
    assert CHECKPOINTS["medsam"].url is None
    assert kind_of("0" * 64) is None
    assert [megabytes(CHECKPOINTS[kind].bytes) for kind in ("vit_b", "vit_h")] == [
        "375 MB",
        "2.6 GB",
    ]


def test_a_checkpoints_card_knows_whether_its_file_is_here(tmp_path):
    card = checkpoint_card(tmp_path / "sam_vit_b_01ec64.pth", "vit_b")
    assert not card.present
    card.path.touch()
    assert card.present
    assert (card.name, card.origin) == ("SAM ViT-B", CHECKPOINTS["vit_b"])
    assert checkpoint_card(tmp_path / "m.pth", "medsam").origin is None


def test_the_card_of_a_sam_of_ours_is_read(tmp_path):
    from tiny_sam import small_model

    from SAMRefineLib.sam.models import save_sam

    card = "# x\n\n- Expects: slices of CT,\n  and boxes\n- Licence: CC BY 4.0\n"
    save_sam(tmp_path / "sam-x", small_model(), card, "CC BY 4.0")
    (tmp_path / "no sam").mkdir()
    assert find_sams(tmp_path) == [tmp_path / "sam-x"]
    found = read_sam_card(tmp_path / "sam-x")
    assert (found.kind, found.name) == ("small", "tiny")
    assert (found.expects, found.licence) == ("slices of CT, and boxes", "CC BY 4.0")
    with pytest.raises(BundleError, match="holds no SAM of this program"):
        read_sam_card(tmp_path / "no sam")
    (tmp_path / "sam-x" / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="damaged SAM"):
        read_sam_card(tmp_path / "sam-x")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_default_of_a_modality_is_shipped(modality):
    assert shipped_models_folder() / default_for(modality) in find_sams(shipped_models_folder())
