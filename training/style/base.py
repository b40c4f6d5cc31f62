# SPDX-License-Identifier: Apache-2.0
"""Base models: text-to-image latent diffusion like Stable Diffusion 1.x, diffusers format.

A base is a folder with model_index.json and the parts vae, unet, text_encoder, tokenizer and
scheduler, or the name of such a repository on the Hugging Face hub. Only what is on this machine
is read, unless a download is asked for. The parts are built by the classes named here, whatever
the folder asks for, from safetensors, or from .bin files that are read without running code.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
)
from transformers import CLIPTextModel, CLIPTokenizer

from SRCSMSegmenterLib.atomic import atomic_folder, recover
from SRCSMSegmenterLib.errors import BundleError, ConfigError
from SRCSMSegmenterLib.schema import convert_keys

from .slices import StyleError, write_bytes
from .weights import built, load_network, read_json, weight_files, weights_sha256

PARTS = {
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""Parts of a pipeline and the classes they may have; a scheduler of any class comes on top."""

IGNORED = {"scheduler", "safety_checker", "feature_extractor", "image_encoder"}
"""Parts that other pipelines of the same models may have beside those."""

WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model"}
WEIGHTS["text_encoder"] = "model"

CONDITION_CHANNELS = (16, 32, 96, 256)
"""Of a ControlNet's stem: as many as halvings bring the picture to the latents' size, plus one."""


_RECORD = {"weights": str, "base": dict[str, str]}
RECORDS = {
    "tune": {**_RECORD, "settings": dict[str, Any]},
    "control": {
        **_RECORD,
        "settings": dict[str, Any],
        "size": int,
        "colours": dict[str, Any],
        "tuned": Any,
    },
}
"""What model.json of a stage's run holds, as far as the stages after it read it."""


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base model in memory, evaluation mode, without gradients.

    Attributes:
        name: the folder or the name on the hub.
        scheduler: configuration of its noise, any diffusers scheduler's.
        licence: as its card states it.
        identity: part -> SHA-256 of its weights.
    """

    name: str
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: dict[str, Any]
    licence: str
    identity: dict[str, str]

    @property
    def factor(self) -> int:
        """Pixels of the picture per pixel of the latents."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def check_size(self, size: int) -> None:
        """Check that the networks take pictures of `size` pixels.

        Raises:
            ConfigError: they do not.
        """
        multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if size % multiple:
            raise ConfigError(
                f"Slices of {size} pixels do not fit the base model {self.name}, which needs a "
                f"multiple of {multiple}; prepare them with another size."
            )

    def record(self) -> dict[str, Any]:
        """Return name, licence and SHA-256 of the parts, for manifests and model files."""
        return {"name": self.name, "licence": self.licence, **self.identity}


def load_base(
    name: str, *, download: bool = False, say: Callable[[str], None] = print
) -> BaseModel:
    """Load a base model onto the CPU in full precision.

    Args:
        name: a folder, or a name on the hub.
        download: fetch what is not on this machine.
        say: told the licence.

    Raises:
        BundleError: there is none of that name here, or it is incomplete, in another format, or of
            another architecture.
    """
    folder = find_base(name, download)
    _check(folder, name)
    parts, identity = {}, {}
    for part, kind in (
        ("vae", AutoencoderKL),
        ("unet", UNet2DConditionModel),
        ("text_encoder", CLIPTextModel),
    ):
        files = weight_files(folder / part, WEIGHTS[part])
        parts[part] = load_network(kind, folder / part, files, name)
        identity[part] = weights_sha256(files)
    tokenizer = built(
        lambda: CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        name,
        "tokenizer",
    )
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", name)
    base = BaseModel(
        name, **parts, tokenizer=tokenizer, scheduler=scheduler, licence=licence(folder),
        identity=identity,
    )  # fmt: skip
    _check_networks(base)
    say(f"Base model {name}; its licence: {base.licence}.")
    return base


def find_base(name: str, download: bool) -> Path:
    """Find the folder of a base model on this machine, or fetch it into the hub's cache.

    Raises:
        BundleError: a single file; no folder and not in the cache; or it cannot be fetched.
    """
    path = Path(name)
    recover(path)
    if path.is_file():
        raise BundleError(
            f"{name} is a single file; the style stages read diffusers folders, which "
            "diffusers' StableDiffusionPipeline.from_single_file(...).save_pretrained(...) makes."
        )
    if path.is_dir():
        return path
    if download:
        try:
            return Path(snapshot_download(name, allow_patterns=_files_needed(name)))
        except Exception as error:  # whatever the network raises
            raise BundleError(f"The base model {name} cannot be fetched: {error}") from error
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except IncompleteSnapshotError as error:  # without what is not needed
        return Path(error.snapshot_path)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise BundleError(
            f"The base model {name} is not on this machine; give a folder in diffusers format, "
            "or --download to fetch it from the Hugging Face hub."
        ) from error


def licence(folder: Path) -> str:
    """Read the licence in a model's card."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else {}
        stated = front.get("license_name") or front.get("license")
        return str(stated) if stated else "not stated; look for it where the model comes from"
    except (OSError, ValueError, yaml.YAMLError, AttributeError, IndexError, RecursionError):
        return "not stated; look for it where the model comes from"


def save_model(save: Callable[[Path], None], folder: Path) -> None:
    """Write a model's folder; an older one is replaced once the new one is whole.

    Args:
        save: writes the model into the folder that it is given.

    Raises:
        StyleError: it cannot be written.
    """
    try:
        with atomic_folder(folder) as temporary:
            save(temporary)
    except Exception as error:  # safetensors hides an OSError in errors of its own
        raise StyleError(
            f"Cannot write the model {folder} ({error}); free some space, and the same command "
            "writes it from the last checkpoint."
        ) from error


def write_record(run: Path, record: dict[str, Any]) -> None:
    """Write model.json, the record of a run.

    Raises:
        StyleError: it cannot be written.
    """
    made = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "packages": {p: version(p) for p in ("torch", "diffusers", "transformers", "peft")},
    }
    write_bytes(run / "model.json", (json.dumps({**record, **made}, indent=1) + "\n").encode())


def read_record(run: Path, stage: str) -> dict[str, Any]:
    """Read model.json of a finished run of a stage.

    Raises:
        BundleError: not finished, not there, or of another stage.
    """
    if not (run / "model.json").is_file():
        raise BundleError(
            f"{run} holds no finished srcsm style {stage} (no model.json); run that to its end."
        )
    record = read_json(run / "model.json", str(run))
    if record.get("stage") != stage:
        raise BundleError(f"{run} holds a style {record.get('stage')}, not a style {stage}.")
    convert_keys(record, RECORDS[stage], f"{run / 'model.json'}", BundleError)
    return record


def check_base(base: BaseModel, record: dict[str, Any], run: Path) -> None:
    """Check that a run was trained on this base.

    Raises:
        BundleError: it was trained on another.
    """
    other = [part for part, digest in base.identity.items() if record["base"].get(part) != digest]
    if other:
        raise BundleError(
            f"{run} was trained on the base model {record['base']['name']}, whose "
            f"{' and '.join(other)} differ from those of {base.name}; give that one."
        )


def _files_needed(name: str) -> list[str]:
    """List what to fetch of a hub repository: one kind of weights, no variants."""
    there = set(HfApi().list_repo_files(name))
    wanted = ["model_index.json", "README.md", "LICENSE*", "tokenizer/*", "scheduler/*"]
    for part, stem in WEIGHTS.items():
        old = "pytorch_model" if stem == "model" else stem
        safe = f"{part}/{stem}.safetensors"
        wanted += [f"{part}/config.json", safe if safe in there else f"{part}/{old}.bin"]
    return wanted


def _check(folder: Path, name: str) -> None:
    """Refuse other formats and architectures, by model_index.json."""
    if not (folder / "model_index.json").is_file():
        raise BundleError(
            f"{name} is no model in diffusers format (it has no model_index.json); give a folder "
            "that diffusers' save_pretrained wrote."
        )
    index = read_json(folder / "model_index.json", name)
    parts = {
        part: entry[1]
        for part, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    }
    fits = all(parts.get(part) in kinds for part, kinds in PARTS.items())
    extra = sorted(parts.keys() - PARTS.keys() - IGNORED)
    if not fits or extra:
        raise BundleError(
            f"{name} is a {index.get('_class_name', 'pipeline of an unknown kind')}; the style "
            "stages need a base of Stable Diffusion 1.x's architecture (one CLIP text encoder, "
            "AutoencoderKL, UNet2DConditionModel), not SDXL, SD 3 or others."
        )


def _check_networks(base: BaseModel) -> None:
    """Refuse U-Nets that need other inputs than latents, a time and a prompt."""
    unet, vae = base.unet.config, base.vae.config
    latents = vae.latent_channels
    prediction = base.scheduler.get("prediction_type", "epsilon")
    for wrong, what in (
        (
            unet.in_channels != latents,
            f"its U-Net takes {unet.in_channels} channels, not {latents}",
        ),
        (
            unet.addition_embed_type is not None,
            "its U-Net needs more than a prompt, as SDXL's does",
        ),
        (unet.class_embed_type is not None, "its U-Net needs a class"),
        (
            unet.cross_attention_dim != base.text_encoder.config.hidden_size,
            "its U-Net does not fit its text encoder",
        ),
        (
            base.factor > 2 ** (len(CONDITION_CHANNELS) - 1),
            f"its latents are {base.factor} times smaller",
        ),
        (prediction not in ("epsilon", "v_prediction"), f"it predicts {prediction}"),
    ):
        if wrong:
            raise BundleError(
                f"{base.name} cannot be used: {what}; take a text-to-image base of Stable "
                "Diffusion 1.x's architecture."
            )
