# SPDX-License-Identifier: Apache-2.0
"""Weights of networks of diffusers and transformers: which files hold them, and safe loading.

A network is built by the class its caller names, whatever its folder asks for, from safetensors or
from .bin files that are read without running code, and from the files that are hashed alone.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel

from SRCSMSegmenterLib.atomic import read_regular, recover
from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.schema import parse_json

from .slices import file_sha256


def load_network(kind: type, folder: Path, files: list[Path], name: str) -> Any:  # noqa: ANN401
    """Load a network of diffusers or transformers on the CPU, in full precision, for use alone.

    Args:
        files: its weights.
        name: of the model it is a part of.

    Raises:
        BundleError: it cannot be read, would be read from other files too, or lacks weights, which
            would be random.
    """
    _check_weight_files(folder, files)
    # Of a CLIPTextModel; the configuration may name one of the hub, which is code.
    attention = {"attn_implementation": "sdpa"} if kind is CLIPTextModel else {}
    model, told = built(
        lambda: kind.from_pretrained(
            folder,
            use_safetensors=files[0].suffix == ".safetensors",
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            **attention,
        ),
        name,
        folder.name,
    )
    if lacking := sorted(told["missing_keys"]):
        raise BundleError(
            f"The {folder.name} of {name} lacks {len(lacking)} weights, the first is {lacking[0]}; "
            "the model is incomplete or of another architecture, fetch it anew."
        )
    return model.eval().requires_grad_(False)


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Find the files of a part's weights: safetensors if there are any, else .bin.

    Raises:
        BundleError: there are none.
    """
    old = "pytorch_model" if stem == "model" else stem
    for pattern in (f"{stem}.safetensors", f"{stem}-*-of-*.safetensors", f"{old}.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    if variants := sorted(path.name for path in folder.glob(f"{stem}.*.safetensors")):
        raise BundleError(
            f"{folder} has its weights as {' and '.join(variants)} alone; fetch {stem}.safetensors "
            "too, or save the model anew without a variant."
        )
    raise BundleError(
        f"{folder} has no weights ({stem}.safetensors); the model is incomplete, fetch it anew."
    )


def weights_sha256(files: list[Path]) -> str:
    """Compute one hex digest for one or several files."""
    sums = [file_sha256(path) for path in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def check_weights(files: list[Path], record: dict[str, Any]) -> None:
    """Compare weights with what their run's record says.

    Raises:
        BundleError: they differ.
    """
    recover(files[0].parent)
    if not all(path.is_file() for path in files) or weights_sha256(files) != record["weights"]:
        raise BundleError(f"{files[0]} is missing or changed since it was trained; train it anew.")


def _check_weight_files(folder: Path, files: list[Path]) -> None:
    """Refuse a network whose weights would be read from other files.

    Raises:
        BundleError: it has an adapter, or an index that names other files.
    """
    if (folder / "adapter_config.json").exists():
        raise BundleError(
            f"{folder} holds an adapter, which names the model it is for; merge the two first."
        )
    names = {path.name for path in files}
    for index in folder.glob("*.index.json"):
        shards = read_json(index, str(folder)).get("weight_map")
        if not isinstance(shards, dict) or not names.issuperset(map(str, shards.values())):
            raise BundleError(f"{index} names other files than {', '.join(sorted(names))}.")


def built(build: Callable[[], Any], name: str, part: str) -> Any:  # noqa: ANN401
    try:
        return build()
    except Exception as error:  # the two libraries raise nearly anything
        raise BundleError(
            f"The {part} of {name} cannot be read ({str(error).splitlines()[0]}); the model is "
            "incomplete, damaged or of another architecture, fetch it anew."
        ) from error


def read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"{name} is incomplete or damaged: {path.name}: {error}.") from error
    content = parse_json(text, f"{name} is incomplete or damaged: {path.name}", BundleError)
    if not isinstance(content, dict):
        raise BundleError(f"{name} is incomplete or damaged: {path.name} holds no object.")
    return content
