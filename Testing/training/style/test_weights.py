# SPDX-License-Identifier: Apache-2.0
"""Weights of networks: whole, and from the files that are hashed alone."""

import json
import os
import shutil

import pytest
import style_tiny
import torch
from safetensors.torch import load_file, save_file

from srcsm_training.style.base import load_base
from srcsm_training.style.prompts import read_prompts
from srcsm_training.style.small_base import build_base, save_base
from srcsm_training.style.weights import weight_files
from SRCSMSegmenterLib.errors import BundleError


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A small base with random weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    base = build_base(style_tiny.config().base, read_prompts("abdomen"), 32)
    save_base(base, tmp_path / "base", [], read_prompts("abdomen"))
    return tmp_path / "base"


def test_weights_that_are_missing_are_refused_and_not_made_up(copy):
    path = copy / "text_encoder/model.safetensors"
    weights = load_file(path)
    lost = max(weights)
    save_file({k: v for k, v in weights.items() if k != lost}, path, {"format": "pt"})
    with pytest.raises(BundleError, match=r"text_encoder of .* lacks 1 weights"):
        load_base(str(copy))


def test_weights_are_read_from_the_files_that_are_hashed_alone(copy, tmp_path):
    """An index or an adapter may name files that lie anywhere."""
    encoder = copy / "text_encoder"
    names = load_file(encoder / "model.safetensors")
    shutil.copy(encoder / "model.safetensors", tmp_path / "other.safetensors")
    os.rename(encoder / "model.safetensors", encoder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../../other.safetensors")}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match="names other files than model-00001"):
        load_base(str(copy))
    index["weight_map"] = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_base(str(copy), say=style_tiny.silent).text_encoder.training is False
    (encoder / "adapter_config.json").write_text("{}")
    with pytest.raises(BundleError, match="holds an adapter"):
        load_base(str(copy))


def test_a_configuration_does_not_choose_code_of_the_hub(copy):
    path = copy / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "a/kernel"}))
    encoder = load_base(str(copy), say=style_tiny.silent).text_encoder
    assert encoder.config._attn_implementation == "sdpa"


def test_a_model_with_half_precision_files_alone_is_told_so(tmp_path):
    (tmp_path / "model.fp16.safetensors").touch()
    with pytest.raises(
        BundleError, match=r"model\.fp16\.safetensors alone; fetch model\.safetensors"
    ):
        weight_files(tmp_path, "model")
