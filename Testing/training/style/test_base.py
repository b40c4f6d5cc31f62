# SPDX-License-Identifier: Apache-2.0
"""Base models: what is read, what is refused, and that the small one is an ordinary pipeline."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import style_tiny
import tiny
import torch
from diffusers import StableDiffusionPipeline
from restyled import prepared

from srcsm_training.style.base import find_base, load_base
from srcsm_training.style.diffusion import encode_prompts, token_ids
from srcsm_training.style.prompts import read_prompts
from srcsm_training.style.small_base import LICENCE, build_base, save_base
from srcsm_training.style.tokenizer import make_tokenizer
from SRCSMSegmenterLib.errors import BundleError, ConfigError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny.forget_accelerator()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small base with random weights."""
    folder = tmp_path_factory.mktemp("base") / "small"
    torch.manual_seed(0)
    base = build_base(style_tiny.config().base, read_prompts("abdomen"), 32)
    base.vae.register_to_config(scaling_factor=0.5)
    save_base(base, folder, [], read_prompts("abdomen"))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}))


def test_the_small_base_is_an_ordinary_pipeline(saved):
    """diffusers itself reads it and draws the same picture from the same noise."""
    pipeline = StableDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    base = load_base(str(saved), say=style_tiny.silent)
    assert pipeline.vae.config.scaling_factor == base.vae.config.scaling_factor == 0.5
    for ours, theirs in ((base.unet, pipeline.unet), (base.vae, pipeline.vae)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    prompts = ["axial CT scan of the abdomen", ""]
    embedded, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    torch.testing.assert_close(embedded, encode_prompts(base, prompts))
    picture = pipeline(
        prompts[0],
        height=32,
        width=32,
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert picture.shape == (1, 32, 32, 3)


def test_loading_says_the_licence_and_names_every_weight(saved, copy):
    lines = []
    base = load_base(str(saved), say=lines.append)
    assert "terms of the slices it was trained on" in lines[0]
    assert set(base.identity) == {"vae", "unet", "text_encoder"}
    (copy / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")
    other = load_base(str(copy), say=lines.append)
    assert "its licence: creativeml-openrail-m." in lines[1]
    assert other.identity == base.identity
    (copy / "README.md").unlink()
    load_base(str(copy), say=lines.append)
    assert "not stated" in lines[2]
    for module in (base.vae, base.unet, base.text_encoder):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_weights_in_bin_files_are_read_without_running_code(saved, copy, tmp_path):
    whole = load_base(str(saved), say=style_tiny.silent)
    for part, module in (("unet", whole.unet), ("vae", whole.vae)):
        (copy / part / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(module.state_dict(), copy / part / "diffusion_pytorch_model.bin")
    (copy / "text_encoder" / "model.safetensors").unlink()
    torch.save(whole.text_encoder.state_dict(), copy / "text_encoder" / "pytorch_model.bin")
    read = load_base(str(copy), say=style_tiny.silent)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(b, part).state_dict() for b in (read, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert read.identity[part] != whole.identity[part]

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    torch.save({"x": Trap()}, copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(BundleError, match=r"The unet of .* cannot be read"):
        load_base(str(copy), say=style_tiny.silent)
    assert not (tmp_path / "trap").exists()


def test_a_vocabulary_of_two_files_as_older_models_have_is_read(saved, copy):
    whole = load_base(str(saved), say=style_tiny.silent)
    model = json.loads((copy / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]
    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(["#version: 0.2", *(" ".join(m) for m in model["merges"])])
    (copy / "tokenizer" / "merges.txt").write_text(merges + "\n")
    old = load_base(str(copy), say=style_tiny.silent)
    prompts = ["axial T2 weighted MRI of the abdomen", "zebra 7", ""]
    assert torch.equal(token_ids(old, prompts), token_ids(whole, prompts))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            {
                "_class_name": "StableDiffusionXLPipeline",
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                "tokenizer_2": ["transformers", "CLIPTokenizer"],
            },
            "is a StableDiffusionXLPipeline",
        ),
        (
            {
                "_class_name": "StableDiffusion3Pipeline",
                "unet": [None, None],
                "transformer": ["diffusers", "SD3Transformer2DModel"],
            },
            "is a StableDiffusion3Pipeline",
        ),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "Stable Diffusion 1.x's architecture"),
    ],
)
def test_other_architectures_are_refused_in_one_sentence(copy, index, words):
    edit(copy / "model_index.json", **index)
    with pytest.raises(BundleError, match=words) as refused:
        load_base(str(copy), say=style_tiny.silent)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, "its U-Net takes 9 channels, not 4"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "more than a prompt",
        ),
        ({"cross_attention_dim": 24}, "does not fit its text encoder"),
        ({"class_embed_type": "timestep"}, "needs a class"),
    ],
)
def test_u_nets_with_other_inputs_are_refused(copy, changes, words):
    """Inpainting bases, SDXL's U-Net behind a renamed index, mismatched parts."""
    from diffusers import UNet2DConditionModel

    settings = json.loads((copy / "unet" / "config.json").read_text("utf-8"))
    shutil.rmtree(copy / "unet")
    UNet2DConditionModel.from_config({**settings, **changes}).save_pretrained(copy / "unet")
    with pytest.raises(BundleError, match=words):
        load_base(str(copy), say=style_tiny.silent)


def test_another_kind_of_prediction_is_refused(copy):
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(BundleError, match="it predicts sample"):
        load_base(str(copy), say=style_tiny.silent)


def test_what_is_no_diffusers_folder_is_refused(copy, tmp_path):
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"x")
    with pytest.raises(BundleError, match=r"is a single file.*from_single_file"):
        find_base(str(single), False)
    (copy / "model_index.json").unlink()
    with pytest.raises(BundleError, match=r"no model_index.json"):
        load_base(str(copy), say=style_tiny.silent)


@pytest.mark.parametrize(
    ("part", "damage", "words"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "gone", "has no weights"),
        ("unet/diffusion_pytorch_model.safetensors", "cut", "The unet of .* cannot be read"),
        ("text_encoder/model.safetensors", "cut", "The text_encoder of .* cannot be read"),
        ("vae/config.json", "gone", "The vae of .* cannot be read"),
        ("scheduler/scheduler_config.json", "gone", "incomplete or damaged"),
        ("model_index.json", "cut", "incomplete or damaged"),
    ],
)
def test_an_incomplete_or_damaged_base_is_refused(copy, part, damage, words):
    path = copy / part
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=words) as refused:
        load_base(str(copy), say=style_tiny.silent)
    assert "\n" not in str(refused.value)


def test_only_what_is_on_this_machine_is_read_unless_asked_for(saved, tmp_path):
    """In a process of its own: the hub's library reads its settings when it is imported."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--small"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = """
import socket
def refuse(*a, **k): raise AssertionError("the network was used")
socket.socket.connect = refuse
from srcsm_training.style.base import find_base
from SRCSMSegmenterLib.errors import BundleError
for name in ("Nihirc/Prompt2MedImage", "not/a/name", "no folder"):
    try:
        find_base(name, False)
    except BundleError as error:
        print(error)
print(find_base("someone/small", False))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    *refused, found = done.stdout.splitlines()
    assert len(refused) == 3
    assert all("is not on this machine" in line and "--download" in line for line in refused)
    assert found == str(repository / "snapshots" / commit)


def test_slices_must_fit_the_networks(saved):
    base = load_base(str(saved), say=style_tiny.silent)
    base.check_size(32)
    with pytest.raises(ConfigError, match=r"30 pixels .* a multiple of 4"):
        base.check_size(30)


def test_the_tokenizer_knows_the_prompts_and_spells_the_rest():
    prompts = read_prompts("abdomen")
    tokenizer = make_tokenizer(prompts, 1000, 24)
    pieces = tokenizer.tokenize("axial CT scan of the abdomen")
    assert pieces == ["axial</w>", "ct</w>", "scan</w>", "of</w>", "the</w>", "abdomen</w>"]
    assert "".join(tokenizer.tokenize("spleen")) == "spleen</w>"
    assert tokenizer.unk_token not in tokenizer.tokenize("quick zebra 7")
    ids = tokenizer(["ct", ""], padding="max_length", max_length=24, truncation=True).input_ids
    assert {len(row) for row in ids} == {24}
    assert ids[0][0] == ids[1][0] == tokenizer.bos_token_id
    assert ids[1][1:] == [tokenizer.eos_token_id] * 23
    assert len(make_tokenizer(prompts, 530, 24)) == 530
    assert make_tokenizer(prompts, 1000, 24).get_vocab() == tokenizer.get_vocab()


def test_the_card_names_slices_and_licence(saved, tmp_path):
    base, prompts = load_base(str(saved), say=style_tiny.silent), read_prompts("abdomen")
    data = tiny.write_dataset(tmp_path / "Dataset001_Tiny")
    slices = prepared(data, tmp_path / "slices")
    save_base(base, tmp_path / "base", [slices], prompts)
    card = (tmp_path / "base" / "README.md").read_text("utf-8")
    assert "Research use only" in card
    assert f"- {slices.name}: {len(slices.slices)} slices, styles ct; manifest " in card
    assert hashlib.sha256((slices.folder / "manifest.json").read_bytes()).hexdigest() in card
    assert load_base(str(tmp_path / "base"), say=style_tiny.silent).licence == LICENCE
    assert not [p for p in (tmp_path / "base").iterdir() if p.name.endswith((".tmp", ".old"))]


def test_a_prompt_that_the_text_encoder_would_cut_is_refused(saved):
    base = load_base(str(saved), say=lambda line: None)
    most = base.text_encoder.config.max_position_embeddings
    fitting = "a" * (most - 2)
    assert token_ids(base, ["a", fitting]).shape == (2, most)
    with pytest.raises(ConfigError, match=f"has {most + 1} tokens, the text encoder takes {most}"):
        token_ids(base, [f"{fitting}b"])
