# SPDX-License-Identifier: Apache-2.0
"""SAM checkpoints: the right ones load, all others are refused in one sentence."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry
from tiny_sam import SMALL, official_model, small_model

from SAMRefineLib.sam import models
from SAMRefineLib.sam.catalogue import find_sams, is_sam
from SAMRefineLib.sam.checkpoints import CHECKPOINTS
from SAMRefineLib.sam.models import (
    SamModel,
    build_sam,
    load_sam,
    save_sam,
    verify_sam,
)
from SAMRefineLib.sam.pixels import EQUALISED, OFFICIAL, SRCSM, UNIT
from SRCSMSegmenterLib.errors import BundleError, DeviceError
from SRCSMSegmenterLib.models.catalogue import find_bundles, is_bundle


@pytest.fixture
def folder(tmp_path):
    model = replace(small_model(), name="sam-small-ct", training={"dice": [0.5], "steps": 3})
    save_sam(tmp_path / "sam-small-ct", model, "# Card\n", "The licence\n")
    return tmp_path / "sam-small-ct"


@pytest.fixture
def little(monkeypatch):
    """Official kinds in little: `official_model` stands for ViT-B, a small SAM for ViT-L."""
    monkeypatch.setitem(sam_model_registry, "vit_b", lambda: official_model().sam)
    monkeypatch.setitem(sam_model_registry, "vit_l", lambda: small_model().sam)


@pytest.fixture
def checkpoint(tmp_path, little, monkeypatch):
    """The "official" ViT-B file, its SHA-256 known."""
    path = tmp_path / "sam_vit_b.pth"
    torch.save(official_model(seed=5).sam.state_dict(), path)
    make_official(path, monkeypatch)
    return path


def make_official(path, monkeypatch, kind="vit_b"):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(CHECKPOINTS, kind, replace(CHECKPOINTS[kind], sha256=digest))


def reseal(folder):
    files = sorted(p for p in folder.iterdir() if p.name != "SHA256SUMS")
    lines = (f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)
    (folder / "SHA256SUMS").write_text("".join(lines))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# Files


def with_config(folder, key, value):
    content = json.loads((folder / "config.json").read_text())
    if key in content["sizes"]:
        content["sizes"][key] = value
    else:
        content[key] = value
    (folder / "config.json").write_text(json.dumps(content))
    reseal(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window", 0),
        ("window", -128),
        ("canvas", 10**9),
        ("depth", 10**9),
        ("mlp_ratio", 1e30),
        ("mlp_ratio", -1.0),
        ("mlp_ratio", 1e-9),
        ("embed_dim", -6),
        ("prompt_dim", 2**70),
        ("name", "a\nb"),
        ("name", 5),
        ("training", []),
        ("pixels", {}),
    ],
)
def test_impossible_sizes_and_texts_are_refused(folder, key, value):
    with pytest.raises(BundleError, match="cannot be used"):
        load_sam(with_config(folder, key, value), device="cpu")


def test_weights_that_are_not_finite_are_refused(folder):
    model = small_model()
    next(model.sam.parameters()).data.view(-1)[0] = torch.nan
    save_sam(folder, model, "# Card\n", "The licence\n")
    with pytest.raises(BundleError, match="not finite"):
        load_sam(folder, device="cpu")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02.",
        b"\x80\x02h\xff.",
        b"\x80\x02G.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(BundleError, match="no checkpoint of weights alone"):
        load_sam(tmp_path / "m.pth", "medsam", "cpu")


def test_an_official_file_is_recognised(checkpoint):
    model = load_sam(checkpoint, device="cpu")
    assert (model.kind, model.pixels, model.window) == ("vit_b", OFFICIAL, None)
    assert model.identity == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert same(model.sam.state_dict(), official_model(seed=5).sam.state_dict())
    assert (model.canvas, model.patch, model.step) == (96, 16, 16)
    assert not model.local_positions
    assert not model.sam.training
    assert not any(p.requires_grad for p in model.sam.parameters())
    assert not any(p.is_meta for p in [*model.sam.parameters(), *model.sam.buffers()])


def test_its_kind_may_be_named_too(checkpoint):
    assert load_sam(checkpoint, "vit_b", "cpu").kind == "vit_b"


def test_medsam_has_its_own_pixels_and_no_known_hash(checkpoint):
    torch.save(official_model(seed=6).sam.state_dict(), checkpoint)
    model = load_sam(checkpoint, "medsam", "cpu")
    assert (model.kind, model.pixels) == ("medsam", UNIT)
    assert same(model.sam.state_dict(), official_model(seed=6).sam.state_dict())


def test_an_unknown_file_needs_its_kind_named(checkpoint):
    torch.save(official_model(seed=6).sam.state_dict(), checkpoint)
    with pytest.raises(BundleError, match="none of the official"):
        load_sam(checkpoint, device="cpu")


def test_a_file_that_is_not_the_official_one_is_refused(checkpoint):
    torch.save(official_model(seed=6).sam.state_dict(), checkpoint)
    with pytest.raises(BundleError, match=r"not the official sam_vit_b_01ec64\.pth"):
        load_sam(checkpoint, "vit_b", "cpu")


def test_another_architecture_is_refused(checkpoint, monkeypatch):
    make_official(checkpoint, monkeypatch, "vit_l")
    with pytest.raises(BundleError, match="not those of a vit_l SAM") as refused:
        load_sam(checkpoint, "vit_l", "cpu")
    assert "unknown" in str(refused.value)


def test_one_weight_of_another_shape_is_refused(checkpoint):
    weights = official_model().sam.state_dict()
    name = "mask_decoder.iou_token.weight"
    torch.save({**weights, name: weights[name][:, :-1]}, checkpoint)
    with pytest.raises(BundleError, match=f"1 of another shape, such as {name}"):
        load_sam(checkpoint, "medsam", "cpu")


@pytest.mark.parametrize("kind", [None, "vit_b", "medsam"])
def test_a_truncated_file_is_refused(checkpoint, kind):
    content = checkpoint.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        checkpoint.write_bytes(content[:length])
        with pytest.raises(BundleError, match="fetch"):
            load_sam(checkpoint, kind, "cpu")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of the checkpoint was run",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda value, file: pickle.dump(value, file)])
def test_code_in_a_file_is_refused_not_run(checkpoint, save):
    with open(checkpoint, "wb") as file:
        save({"weights": Bomb()}, file)
    with pytest.raises(BundleError, match="no checkpoint of weights alone"):
        load_sam(checkpoint, "medsam", "cpu")


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.ones(1)}}, {1: torch.ones(1)}])
def test_a_file_without_a_table_of_weights_is_refused(checkpoint, content):
    torch.save(content, checkpoint)
    with pytest.raises(BundleError, match="cannot be used"):
        load_sam(checkpoint, "medsam", "cpu")


def test_half_precision_files_load_as_float32(checkpoint):
    weights = official_model().sam.state_dict()
    torch.save({name: value.half() for name, value in weights.items()}, checkpoint)
    loaded = load_sam(checkpoint, "medsam", "cpu").sam.state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())


def test_absent_files_and_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(BundleError, match="No such file"):
        load_sam(tmp_path / "sam.pth", device="cpu")
    with pytest.raises(BundleError, match="vit_b, vit_l, vit_h, medsam"):
        load_sam(tmp_path / "sam.pth", "vit_x", "cpu")


def test_only_a_bare_name_is_looked_up_among_the_shipped_sams(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SRCSM_MODELS", str(folder.parent))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load_sam(folder.name, device="cpu").identity
    for typo in (Path("runs", "typo", folder.name), tmp_path / "typo" / folder.name):
        with pytest.raises(BundleError, match=r"typo.* cannot be read"):
            load_sam(typo, device="cpu")


def test_an_absent_device_is_refused(folder):
    with pytest.raises(DeviceError):
        load_sam(folder, device="abacus")


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_architectures_are_segment_anythings(kind):
    with torch.device("meta"):
        sam = build_sam(kind)
    sizes = {"vit_b": (768, 12), "vit_l": (1024, 24), "vit_h": (1280, 32), "medsam": (768, 12)}
    assert (sam.image_encoder.pos_embed.shape[-1], len(sam.image_encoder.blocks)) == sizes[kind]


def test_the_official_hashes_are_whole():
    hashes = [CHECKPOINTS[kind].sha256 for kind in ("vit_b", "vit_l", "vit_h")]
    assert len(set(hashes)) == 3
    assert all(len(value) == 64 and int(value, 16) for value in hashes)


# Folders


def test_what_is_loaded_is_what_was_saved(folder):
    model = load_sam(folder, device="cpu")
    saved = small_model().sam.state_dict()
    assert same(model.sam.state_dict(), {n: v.half().float() for n, v in saved.items()})
    assert (model.name, model.kind, model.pixels) == ("sam-small-ct", "small", SRCSM)
    assert model.config == SMALL
    assert model.training == {"dice": [0.5], "steps": 3}
    sums = (folder / "SHA256SUMS").read_bytes()
    assert model.identity == hashlib.sha256(sums).hexdigest()
    assert not model.sam.training
    assert not any(p.requires_grad for p in model.sam.parameters())


def test_a_fine_tuned_official_sam_is_a_folder_too(tmp_path, little):
    model = SamModel(official_model().sam, "tuned", "vit_b", EQUALISED)
    identity = save_sam(tmp_path / "tuned", model, "# Card\n", "Licence\n")
    loaded = load_sam(tmp_path / "tuned", device="cpu")
    assert (loaded.name, loaded.kind, loaded.pixels, loaded.config, loaded.identity) == (
        "tuned", "vit_b", EQUALISED, None, identity,
    )  # fmt: skip
    assert loaded.sam.state_dict().keys() == model.sam.state_dict().keys()


def test_a_folder_of_another_kind_than_named_is_refused(folder):
    assert load_sam(folder, "small", "cpu").kind == "small"
    with pytest.raises(BundleError, match='of kind "small", not "vit_b"'):
        load_sam(folder, "vit_b", "cpu")


def test_shipped_ones_have_names(folder, monkeypatch):
    monkeypatch.setenv("SRCSM_MODELS", str(folder.parent))
    assert load_sam("sam-small-ct", device="cpu").name == "sam-small-ct"


@pytest.mark.parametrize("name", [*models.REQUIRED, "SHA256SUMS"])
def test_a_missing_file_is_found_and_refused(folder, name):
    (folder / name).unlink()
    assert name in " ".join(verify_sam(folder))
    with pytest.raises(BundleError, match=name):
        load_sam(folder, device="cpu")


@pytest.mark.parametrize("name", models.REQUIRED)
def test_one_changed_bit_is_found_and_refused(folder, name):
    assert verify_sam(folder) == []
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert verify_sam(folder) == [f"{name} is altered"]
    with pytest.raises(BundleError, match=f"{name} is altered"):
        load_sam(folder, device="cpu")


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.pop("name"),
        lambda c: c.update(kind="big"),
        lambda c: c.update(kind="vit_b"),
        lambda c: c.update(sizes=None),
        lambda c: c.update(surprise=1),
        lambda c: c.update(format_version=2),
        lambda c: c.update(format_version=None),
        lambda c: c["sizes"].update(depth=3),
        lambda c: c["sizes"].update(depth=2.0),
        lambda c: c["sizes"].update(heads=5),
        lambda c: c["pixels"].update(lower=5),
        lambda c: c["pixels"].update(equalise=1),
        lambda c: c["pixels"].update(window=[1]),
    ],
)
def test_odd_configurations_are_refused(folder, edit):
    content = json.loads((folder / "config.json").read_text("utf-8"))
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))
    reseal(folder)
    assert verify_sam(folder) == []
    with pytest.raises(BundleError, match="cannot be used"):
        load_sam(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_something_else_is_refused(folder, name):
    (folder / name).write_bytes(b"\x80\x04 pickle?")
    reseal(folder)
    with pytest.raises(BundleError, match="cannot be used"):
        load_sam(folder, device="cpu")


def test_saving_again_replaces_a_sam_and_nothing_else(folder, tmp_path):
    before = load_sam(folder, device="cpu").identity
    assert save_sam(folder, small_model(seed=1), "# Card\n", "Licence\n") != before
    assert verify_sam(folder) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="no SAM's folder"):
        save_sam(tmp_path / "mine", small_model(), "", "")
    assert (tmp_path / "mine" / "thesis.txt").read_text("utf-8") == "years of work"


def test_sams_and_bundles_are_told_apart(folder, tmp_path):
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text("{}")
    (tmp_path / "bundle" / "SHA256SUMS").write_text("")
    assert (is_sam(folder), is_bundle(folder)) == (True, False)
    assert find_sams(tmp_path) == [folder]
    assert find_bundles(tmp_path) == [tmp_path / "bundle"]


# Identity of the encoder


def test_the_encoder_has_an_identity_of_its_own(folder):
    first, again, other = small_model(), small_model(), small_model(seed=1)
    assert first.encoder_identity == again.encoder_identity != other.encoder_identity
    again = small_model()
    again.sam.mask_decoder.mask_tokens.weight += 1
    assert first.encoder_identity == again.encoder_identity
    again = small_model()
    next(again.sam.image_encoder.parameters()).flatten()[0] += 1
    assert first.encoder_identity != again.encoder_identity
    normalised = replace(small_model(), pixels=replace(SRCSM, mean=(0.5,)))
    assert first.encoder_identity != normalised.encoder_identity
