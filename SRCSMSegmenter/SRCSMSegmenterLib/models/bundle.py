# SPDX-License-Identifier: Apache-2.0
"""A trained network as a folder in the MONAI Bundle layout, checked file by file.

    configs/metadata.json           MONAI's keys, and ours under "srcsm"
    configs/inference.json          for MONAI's own runner (`monai_config`)
    configs/network.json            NetworkConfig
    configs/source_histogram.json   SourceHistogram
    configs/organ_offsets.json      list of Offset, if there are any
    models/model.safetensors        weights, float16 or float32
    docs/README.md                  model card
    LICENSE                         if somebody added one
    SHA256SUMS                      of every other file, for `sha256sum -c`

Loading reads JSON and safetensors and runs no code of the folder. The folder's identity
(`hashed_folder`) names one exact network.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..errors import BundleError, SRCSMError
from ..geometry import GridSpec
from ..intensity import IntensityRule
from ..label_groups import group_faults
from ..network import NetworkConfig, UNet
from ..organ_positions import Offset
from ..schema import convert, parse_json
from ..source_matching import SourceHistogram
from ..terminology import Segment, segment_for
from ..texts import UNSHOWN, is_name, shown
from .catalogue import METADATA, find_model, is_bundle
from .hashed_folder import (
    SUMS,
    check_format,
    is_empty,
    read_folder,
    read_whole_folder,
    sha256,
    to_json,
    write_folder,
)
from .monai_config import INFERENCE, inference_config

FORMAT_VERSION = 1

MOST_SMOOTHING = 100.0
LEAST_SPACING = 0.01
MOST_VOXELS = 1 << 28
"""Limits of what a network may ask of a scan: mm, mm, and voxels of a window."""

NETWORK = "configs/network.json"
HISTOGRAM = "configs/source_histogram.json"
OFFSETS = "configs/organ_offsets.json"
WEIGHTS = "models/model.safetensors"
CARD = "docs/README.md"
LATER_SETTINGS = {"pool_by": "average", "decoder": []}
LATER_DESCRIPTION: dict[str, Any] = {"airless": [], "groups": {}}
"""Settings and parts of a description added after format 1, with what older bundles imply."""

REQUIRED = (METADATA, NETWORK, HISTOGRAM, WEIGHTS, CARD)


@dataclass(frozen=True)
class Description:
    """Description of a network: its labels, and how scans become its input.

    Attributes:
        name: short, such as "abdomen-ct".
        task: one line, such as "Liver, kidneys and spleen in CT and MR".
        labels: foreground labels, values 1, 2, ... in order (`terminology.segment_for`).
        rule: intensity rule of the source modality.
        grid: the grid of the network's input.
        smoothing: sigma in mm of the Gaussian on the scan's own grid.
        expects: the input it expects and the input it was not made for, in words.
        licence: terms of use, in words.
        training: free summary (data, command, steps, validation Dice ...), plain JSON values.
        airless: names of the labels that hold no air in the training scans (`air`).
        groups: groups of labels, if whoever made the training set named any.
        version: of this network.
        authors, copyright: MONAI's keys.
    """

    name: str
    task: str
    labels: tuple[Segment, ...]
    rule: IntensityRule
    grid: GridSpec
    smoothing: float
    expects: str
    licence: str
    training: dict = field(default_factory=dict)
    airless: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    version: str = "0.1.0"
    authors: str = "SRCSMSegmenter contributors"
    copyright: str = "SRCSMSegmenter contributors"

    def __post_init__(self) -> None:
        values = [label.value for label in self.labels]
        if not values or values != list(range(1, len(values) + 1)):
            raise BundleError(f"Labels need the values 1, 2, ... in order, not {values}.")
        if not 0 <= self.smoothing <= MOST_SMOOTHING:
            raise BundleError(
                f"smoothing is a sigma of 0 to {MOST_SMOOTHING:g} mm, not {self.smoothing:g}."
            )
        if min(self.grid.spacing) < LEAST_SPACING or math.prod(self.grid.size) > MOST_VOXELS:
            raise BundleError(
                f"A window has at most {MOST_VOXELS} voxels of {LEAST_SPACING:g} mm or more, not "
                f"{self.grid.size} of {self.grid.spacing} mm."
            )
        self._check_texts()

    def _check_texts(self) -> None:
        """Check the texts that become part of file headers, tables and cards."""
        names = [self.name, *(label.name for label in self.labels)]
        if odd := [name for name in names if not is_name(name)]:
            raise BundleError(f"{odd[0]!r} is no name: names are on one line, and not empty.")
        if len(set(names[1:])) < len(self.labels):
            raise BundleError("Two labels have one name.")
        if unknown := sorted(set(self.airless) - set(names[1:])):
            raise BundleError(f"airless names {unknown[0]!r}, which is no label.")
        if faults := group_faults(self.groups, names[1:]):
            raise BundleError(faults[0])
        for label in self.labels:
            terms = dataclasses.astuple(label.terminology)
            texts = [
                text for term in terms for text in (term if isinstance(term, tuple) else [term])
            ]
            if any(UNSHOWN.search(text) or set(text) & set("~^|") for text in texts if text):
                raise BundleError(f"The terminology of {label.name} has signs that divide fields.")
            if not all(0 <= channel <= 255 for channel in label.color):
                raise BundleError(f"The colour of {label.name} is three numbers of 0 to 255.")
        for text in (self.task, self.expects, self.licence, self.version):
            if UNSHOWN.search(text):
                raise BundleError(f"{shown(text)!r} is no text on one line.")


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A trained network with all that inference needs.

    Attributes:
        weights: state dict of `UNet(network)`, float32.
        offsets: between the organs of the training scans, of at most one per pair.
        identity: SHA-256 (hex) of the folder's SHA256SUMS; "" for one that was never saved.

    Raises:
        BundleError: parts that do not belong together.
    """

    description: Description
    network: NetworkConfig
    histogram: SourceHistogram
    weights: dict[str, torch.Tensor]
    offsets: tuple[Offset, ...] = ()
    identity: str = ""

    def __post_init__(self) -> None:
        described = len(self.description.labels) + 1
        if self.network.classes != described:
            raise BundleError(
                f"The network has {self.network.classes} classes, but {described} are described "
                "(background included)."
            )
        size, divisor = self.description.grid.size, self.network.divisor
        if any(n % d for n, d in zip(size, divisor, strict=True)):
            raise BundleError(f"The window {size} is not a multiple of the network's {divisor}.")
        self.unet()

    def identify(self) -> dict[str, str]:
        """Return the name, the version and the identity, which names one exact network."""
        description = self.description
        return {
            "name": description.name,
            "version": description.version,
            "identity": self.identity,
        }

    def unet(self) -> UNet:
        """Build the network in evaluation mode, on the CPU; it shares `weights`."""
        try:
            with torch.device("meta"):
                network = UNet(self.network)
            network.load_state_dict(self.weights, assign=True)
        except Exception as error:  # torch raises nearly anything for impossible sizes
            raise BundleError(f"The weights do not fit the network: {error}") from error
        return network.eval().requires_grad_(False)


def save_bundle(folder: Path, bundle: ModelBundle, card: str) -> str:
    """Write a bundle; an older one of that name is replaced when the new one is complete.

    The weights are stored as float16.

    Args:
        card: the model card, Markdown.

    Returns:
        The bundle's identity.

    Raises:
        BundleError: the folder cannot be written, or holds something other than a bundle.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not is_bundle(folder) and not is_empty(folder):
        raise BundleError(f"{folder} exists and is no model folder; choose another name.")
    weights = {name: value.half().contiguous() for name, value in bundle.weights.items()}
    before = bundle.weights.values()
    for given, stored in zip(before, weights.values(), strict=True):
        if given.isfinite().all() and not stored.isfinite().all():
            raise BundleError("Weights are too large for float16; lower the learning rate.")
    files = {
        METADATA: to_json(_metadata(bundle)),
        INFERENCE: to_json(inference_config()),
        NETWORK: to_json(dataclasses.asdict(bundle.network)),
        HISTOGRAM: json.dumps(bundle.histogram.to_dict()).encode(),
        WEIGHTS: save_tensors(weights),
        CARD: card.encode(),
    }
    if bundle.offsets:
        files[OFFSETS] = json.dumps([dataclasses.asdict(one) for one in bundle.offsets]).encode()
    return write_folder(folder, files)


def load_bundle(model: str | Path) -> ModelBundle:
    """Read a bundle after checking its every file.

    Args:
        model: a folder, or the name of a shipped model.

    Raises:
        BundleError: no bundle, incomplete, altered, or of another format version.
    """
    folder = Path(model)
    if not folder.exists():
        folder = find_model(str(model))
    files = read_whole_folder(folder, REQUIRED)
    try:
        metadata, network, histogram = (
            parse_json(files[path], path, BundleError) for path in (METADATA, NETWORK, HISTOGRAM)
        )
        return ModelBundle(
            _description(metadata),
            _network(network),
            SourceHistogram.from_dict(histogram),
            _finite(load_tensors(files[WEIGHTS])),
            _offsets(files.get(OFFSETS)),
            sha256(files[SUMS]),
        )
    except (SRCSMError, SafetensorError, ValueError) as error:
        raise BundleError(f"The model folder {folder} cannot be used: {error}") from error


def _finite(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert weights to float32, if they are numbers."""
    if odd := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise BundleError(
            f"{len(odd)} of {len(weights)} weights, such as {odd[0]}, are not finite; the training "
            "failed, take another model."
        )
    return {name: value.float() for name, value in weights.items()}


def verify_bundle(folder: Path) -> list[str]:
    """List the faults of a bundle: missing, altered and extra files; empty if it is whole."""
    return read_folder(Path(folder), REQUIRED)[1]


def _metadata(bundle: ModelBundle) -> dict[str, Any]:
    """Make MONAI's metadata; `load_bundle` reads the entry "srcsm"."""
    description, grid = bundle.description, bundle.description.grid
    rule = description.rule
    channels = {str(label.value): label.name for label in description.labels}
    ours = dataclasses.asdict(description)
    shape = list(grid.size[::-1])
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/"
        "0.8.1/meta_schema_20240725.json",
        "version": description.version,
        "changelog": {description.version: "exported by srcsm"},
        "monai_version": _installed("monai"),
        "pytorch_version": _installed("torch"),
        "numpy_version": _installed("numpy"),
        "required_packages_version": {"safetensors": _installed("safetensors")},
        "task": description.task,
        "description": description.expects,
        "authors": description.authors,
        "copyright": description.copyright,
        "intended_use": description.licence,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if rule.modality == "CT" else "magnitude",
                    "modality": rule.modality,
                    "num_channels": 1,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [-1, 1] if rule.modality == "CT" else [],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": bundle.network.classes,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {"0": "background", **channels},
                }
            },
        },
        "srcsm": {"format_version": FORMAT_VERSION, **ours},
    }


def _description(metadata: Any) -> Description:  # noqa: ANN401 - anything JSON holds
    ours = metadata.get("srcsm") if isinstance(metadata, dict) else None
    if not isinstance(ours, dict) or "format_version" not in ours:
        raise BundleError(f'{METADATA} has no "srcsm" entry, so it is no bundle of this program.')
    check_format(ours.pop("format_version"), FORMAT_VERSION, "export the network anew")
    found = convert(
        LATER_DESCRIPTION | ours, Description, f"{METADATA}: srcsm", BundleError, complete=True
    )
    # Terms and colours of today's lists, not those of the day of the export.
    labels = tuple(segment_for(label.name, label.value) for label in found.labels)
    return replace(found, labels=labels)


def _network(content: Any) -> NetworkConfig:  # noqa: ANN401 - anything JSON holds
    if isinstance(content, dict):
        content = LATER_SETTINGS | content
    return convert(content, NetworkConfig, NETWORK, BundleError, complete=True)


def _offsets(content: bytes | None) -> tuple[Offset, ...]:
    if content is None:
        return ()
    plain = parse_json(content, OFFSETS, BundleError)
    return convert(plain, tuple[Offset, ...], OFFSETS, BundleError, complete=True)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
