# SPDX-License-Identifier: Apache-2.0
"""SAM models: official checkpoints, MedSAM, and folders of this program.

Official files are read from a path the user gives; nothing is fetched. A folder of this program
holds

    config.json          what it is: kind, sizes, pixels, training
    model.safetensors    weights, float16
    README.md            model card
    LICENSE
    SHA256SUMS           of every other file (`SRCSMSegmenterLib.models.hashed_folder`)

and is a small SAM or a fine-tuned official one. Loading runs no code of the files.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.errors import BundleError, SRCSMError
from SRCSMSegmenterLib.models.catalogue import SAM_CONFIG, shipped_folder
from SRCSMSegmenterLib.models.hashed_folder import (
    SUMS,
    check_format,
    is_empty,
    read_folder,
    read_whole_folder,
    sha256,
    to_json,
    write_folder,
)
from SRCSMSegmenterLib.schema import convert, parse_json
from SRCSMSegmenterLib.texts import is_name

from .catalogue import is_sam, trained_organs
from .checkpoints import CHECKPOINTS
from .pixels import PixelRule
from .small_sam import SmallSamConfig, build_small_sam

FORMAT_VERSION = 1

WEIGHTS = "model.safetensors"
CARD = "README.md"
LICENCE = "LICENSE"
REQUIRED = (SAM_CONFIG, WEIGHTS, CARD, LICENCE)

SMALL = "small"
"""The kind of this program's own SAM; the other kinds are those of `CHECKPOINTS`."""


@dataclass(frozen=True, eq=False)
class SamModel:
    """A SAM with its sizes, pixel normalisation and identity.

    Attributes:
        sam: the network in evaluation mode; without gradients if it was loaded.
        name: the name to show.
        kind: "small" or a key of `CHECKPOINTS`.
        pixels: normalisation of its images (`pixels.to_pixels`).
        config: sizes of a small SAM; None for the others.
        identity: SHA-256 of the checkpoint file or of the folder's SHA256SUMS; "" for a SAM that
            was never saved.
        training: summary of a small or fine-tuned SAM's training, plain JSON values.
    """

    sam: Sam
    name: str
    kind: str
    pixels: PixelRule
    config: SmallSamConfig | None = None
    identity: str = ""
    training: dict = field(default_factory=dict)

    def identify(self) -> dict[str, str]:
        """Return the JSON values that identify a SAM: its name, kind and identity."""
        return {"name": self.name, "kind": self.kind, "identity": self.identity}

    @property
    def organs(self) -> frozenset[str]:
        """Names of the labels that it was trained on; empty if it does not say."""
        return trained_organs(self.training)

    @property
    def canvas(self) -> int:
        """Side in pixels of the image that one encoder pass sees."""
        return self.sam.image_encoder.img_size

    @property
    def patch(self) -> int:
        """Side in pixels of a token of the embedding; a decoded mask has 4 x 4 pixels a patch."""
        return self.canvas // self.sam.prompt_encoder.image_embedding_size[0]

    @property
    def window(self) -> int | None:
        """Side in pixels of the windows that a small SAM encodes separately; None for others."""
        return self.config.window if self.config else None

    @property
    def step(self) -> int:
        """Pixels of whose multiples the corners of a mosaic's tiles are."""
        return self.window or self.patch

    @property
    def local_positions(self) -> bool:
        """True if positions count from the tile's corner, False if from the canvas's."""
        return self.window is not None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.sam.parameters()).device

    @cached_property
    def encoder_identity(self) -> str:
        """SHA-256 of the encoder's weights and input normalisation, on which embeddings depend.

        It is computed once: not for an encoder that is being trained.
        """
        digest = hashlib.sha256(repr((self.pixels.mean, self.pixels.deviation)).encode())
        for name, weights in sorted(self.sam.image_encoder.state_dict().items()):
            digest.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
            digest.update(weights.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()


def load_sam(path: str | Path, kind: str | None = None, device: str = "auto") -> SamModel:
    """Load a checkpoint file, or a folder of this program.

    Args:
        path: a .pth file, a folder, or the name of a folder among the shipped models.
        kind: "small" or a key of `CHECKPOINTS`; None takes the kind that a folder states, and
            recognises official files by their SHA-256. MedSAM's is not published: name its kind.
        device: see `resolve_device`.

    Raises:
        BundleError: absent, truncated, altered, or of another architecture.
        DeviceError: unknown or absent device.
    """
    resolved = resolve_device(device)
    path = Path(path)
    if not path.exists() and (shipped := shipped_folder(path)) and shipped.is_dir():
        path = shipped
    model = _load_folder(path) if path.is_dir() else _load_file(path, kind)
    if kind not in (None, model.kind):
        raise BundleError(f'{path} holds a SAM of kind "{model.kind}", not "{kind}".')
    model.sam.to(resolved)
    return model


def save_sam(folder: Path, model: SamModel, card: str, licence: str) -> str:
    """Write a small or fine-tuned SAM; an older one of that name is replaced atomically.

    Args:
        card: the model card, Markdown.
        licence: the text of the LICENSE file.

    Returns:
        The folder's identity.

    Raises:
        BundleError: the folder cannot be written, or holds something other than a SAM.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not is_sam(folder) and not is_empty(folder):
        raise BundleError(f"{folder} exists and is no SAM's folder; choose another name.")
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in model.sam.state_dict().items()
    }
    config = {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(
            _Config(model.name, model.kind, model.config, model.pixels, model.training)
        ),
    }
    files = {
        SAM_CONFIG: to_json(config),
        WEIGHTS: save_tensors(weights),
        CARD: card.encode(),
        LICENCE: licence.encode(),
    }
    return write_folder(folder, files)


def build_sam(kind: str, config: SmallSamConfig | None = None) -> Sam:
    """Build a SAM with random weights, in evaluation mode.

    Args:
        kind: "small" or a key of `CHECKPOINTS`.
        config: sizes of a small SAM (default: `SmallSamConfig()`).
    """
    if kind == SMALL:
        return build_small_sam(config or SmallSamConfig())
    return sam_model_registry[CHECKPOINTS[kind].architecture]()


def verify_sam(folder: Path) -> list[str]:
    """List missing, altered and extra files of a SAM's folder; empty if it is complete."""
    return read_folder(Path(folder), REQUIRED)[1]


@dataclass(frozen=True)
class _Config:
    """Contents of config.json except the format version."""

    name: str
    kind: str
    sizes: SmallSamConfig | None
    pixels: PixelRule
    training: dict


def _load_folder(folder: Path) -> SamModel:
    """Load a folder of this program; for errors see `load_sam`."""
    files = read_whole_folder(folder, REQUIRED)
    try:
        content = parse_json(files[SAM_CONFIG], SAM_CONFIG, BundleError)
        if not isinstance(content, dict):
            raise BundleError(f"{SAM_CONFIG} is no SAM's.")
        check_format(content.pop("format_version", None), FORMAT_VERSION, "export the SAM anew")
        config = convert(content, _Config, SAM_CONFIG, BundleError, complete=True)
        if not is_name(config.name):
            raise BundleError(f"{config.name!r} is no name: names are on one line, and not empty.")
        if config.kind not in (SMALL, *CHECKPOINTS) or (config.kind == SMALL) != bool(config.sizes):
            raise BundleError(f'{SAM_CONFIG} names an unknown kind, "{config.kind}".')
        weights = {name: tensor.float() for name, tensor in load_tensors(files[WEIGHTS]).items()}
        sam = _with_weights(config.kind, config.sizes, weights)
    except (SRCSMError, SafetensorError, ValueError) as error:
        raise BundleError(f"The SAM in {folder} cannot be used: {error}") from error
    return SamModel(
        sam,
        config.name,
        config.kind,
        config.pixels,
        config.sizes,
        sha256(files[SUMS]),
        config.training,
    )


def _load_file(path: Path, kind: str | None) -> SamModel:
    """Load a checkpoint file made by others; for errors see `load_sam`."""
    if kind is not None and kind not in CHECKPOINTS:
        raise BundleError(f'There is no SAM of kind "{kind}"; choose {", ".join(CHECKPOINTS)}.')
    if path.exists() and not path.is_file():
        raise BundleError(f"{path} is a pipe or a device; give a file.")
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}).") from error
    known = {entry.sha256: name for name, entry in CHECKPOINTS.items() if entry.sha256}
    if kind is None:
        if digest not in known:
            raise BundleError(
                f"{path} is none of the official SAM files (its SHA-256 is {digest}): it is "
                "truncated or altered, and must be fetched anew, or of a kind you have to name."
            )
        kind = known[digest]
    entry = CHECKPOINTS[kind]
    if entry.sha256 not in (None, digest):
        raise BundleError(
            f"{path} is not the official {entry.file}: its SHA-256 is {digest}, not "
            f"{entry.sha256}; fetch the file anew."
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise nearly anything
        raise BundleError(
            f"{path} is no checkpoint of weights alone, or truncated; fetch it anew."
        ) from error
    try:
        sam = _with_weights(kind, None, weights)
    except BundleError as error:
        raise BundleError(f"{path} cannot be used: {error}") from error
    return SamModel(sam, kind, kind, entry.pixels, identity=digest)


def _with_weights(
    kind: str, sizes: SmallSamConfig | None, weights: Mapping[str, torch.Tensor]
) -> Sam:
    """Build a SAM of a kind with these weights, which are shared, not copied.

    Raises:
        BundleError: the weights are those of another architecture.
    """
    try:
        with torch.device("meta"):
            sam = build_sam(kind, sizes)
    except Exception as error:  # torch raises nearly anything for impossible sizes
        raise BundleError(f"a {kind} SAM cannot have these sizes ({error}).") from error
    expected = sam.state_dict()
    if not isinstance(weights, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in weights.values()
    ):
        raise BundleError("it holds no table of weights.")
    missing = expected.keys() - weights.keys()
    unknown = weights.keys() - expected.keys()
    odd = [n for n in expected.keys() & weights if weights[n].shape != expected[n].shape]
    if missing or unknown or odd:
        example = min(missing or unknown or odd)
        raise BundleError(
            f"its weights are not those of a {kind} SAM: {len(missing)} are missing, "
            f"{len(unknown)} unknown, {len(odd)} of another shape, such as {example}."
        )
    if odd := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise BundleError(f"{len(odd)} of its weights, such as {odd[0]}, are not finite.")
    sam.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    # Not among the weights; `PixelRule` replaces them.
    sam.pixel_mean, sam.pixel_std = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    return sam.eval().requires_grad_(False)
