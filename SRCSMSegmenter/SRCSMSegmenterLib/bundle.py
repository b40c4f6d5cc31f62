# SPDX-License-Identifier: Apache-2.0
"""A trained network as a folder in the MONAI Bundle layout, checked file by file.

    configs/metadata.json           MONAI's keys, and ours under "srcsm"
    configs/network.json            NetworkConfig
    configs/source_histogram.json   SourceHistogram
    models/model.safetensors        weights, float16 or float32
    docs/README.md                  model card
    LICENSE                         where one is given
    SHA256SUMS                      of every other file, for `sha256sum -c`

Loading reads JSON and safetensors and runs no code of the folder. The SHA-256 of SHA256SUMS is the
bundle's identity: it names one exact network. A folder that was altered together with its
SHA256SUMS is whole, but is another network with another identity.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from .errors import BundleError, SRCSMError
from .geometry import GridSpec
from .intensity import IntensityRule
from .network import NetworkConfig, UNet
from .source_matching import SourceHistogram
from .terminology import Segment

FORMAT_VERSION = 1

METADATA = "configs/metadata.json"
NETWORK = "configs/network.json"
HISTOGRAM = "configs/source_histogram.json"
WEIGHTS = "models/model.safetensors"
CARD = "docs/README.md"
LICENCE = "LICENSE"
SUMS = "SHA256SUMS"
REQUIRED = (METADATA, NETWORK, HISTOGRAM, WEIGHTS, CARD)


@dataclass(frozen=True)
class Description:
    """What a network is and what it needs to know about a scan.

    Attributes:
        name: short, such as "abdomen-ct".
        task: one line, such as "Liver, kidneys and spleen in CT and MR".
        labels: foreground labels, values 1, 2, ... in order (`terminology.segment_for`).
        rule: intensity rule of the source modality.
        grid: the grid the network looks at.
        smoothing: sigma in mm of the Gaussian on the scan's own grid.
        expects: what input it expects and what it was not made for, in words.
        licence: terms of use, in words.
        training: free summary (data, command, steps, validation Dice ...), plain JSON values.
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
    version: str = "0.1.0"
    authors: str = "SRCSMSegmenter contributors"
    copyright: str = "SRCSMSegmenter contributors"

    def __post_init__(self) -> None:
        values = [label.value for label in self.labels]
        if not values or values != list(range(1, len(values) + 1)):
            raise BundleError(f"Labels need the values 1, 2, ... in order, not {values}.")
        if not self.smoothing >= 0:
            raise BundleError(f"smoothing is a sigma in mm, not {self.smoothing}.")


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A trained network with all that inference needs.

    Attributes:
        weights: state dict of `UNet(network)`, float32.
        identity: SHA-256 (hex) of the folder's SHA256SUMS; "" for one that was never saved.

    Raises:
        BundleError: parts that do not belong together.
    """

    description: Description
    network: NetworkConfig
    histogram: SourceHistogram
    weights: dict[str, torch.Tensor]
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

    def unet(self) -> UNet:
        """The network in evaluation mode, on the CPU; shares `weights`."""
        with torch.device("meta"):
            network = UNet(self.network)
        try:
            network.load_state_dict(self.weights, assign=True)
        except RuntimeError as error:
            raise BundleError(f"The weights do not fit the network: {error}") from error
        return network.eval().requires_grad_(False)


def save_bundle(
    folder: Path,
    bundle: ModelBundle,
    card: str,
    licence: str | None = None,
    *,
    half: bool = True,
) -> str:
    """Write a bundle; an older one of that name is replaced once the new one is whole.

    Args:
        card: the model card, Markdown.
        licence: text of the LICENSE file.
        half: store the weights as float16.

    Returns:
        The bundle's identity.

    Raises:
        BundleError: the folder cannot be written, or holds something other than a bundle.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not is_bundle(folder) and not _empty(folder):
        raise BundleError(f"{folder} exists and is no model folder; choose another name.")
    dtype = torch.float16 if half else torch.float32
    weights = {name: value.to(dtype).contiguous() for name, value in bundle.weights.items()}
    files = {
        METADATA: _json(_metadata(bundle)),
        NETWORK: _json(dataclasses.asdict(bundle.network)),
        HISTOGRAM: json.dumps(bundle.histogram.to_dict()).encode(),
        WEIGHTS: save_tensors(weights),
        CARD: card.encode(),
    }
    if licence is not None:
        files[LICENCE] = licence.encode()
    sums = "".join(f"{_sha256(files[path])}  {path}\n" for path in sorted(files)).encode()
    _write({**files, SUMS: sums}, folder)
    return _sha256(sums)


def load_bundle(folder: Path) -> ModelBundle:
    """Read a bundle, having checked every file of it.

    Raises:
        BundleError: no bundle, incomplete, altered, or of another format version.
    """
    files, faults = _read(Path(folder))
    if faults:
        raise BundleError(
            f"The model folder {folder} is incomplete or altered and was not loaded; fetch it "
            f"anew: {'; '.join(faults)}."
        )
    try:
        metadata = _parsed(files[METADATA], METADATA)
        return ModelBundle(
            _description(metadata),
            _typed(_parsed(files[NETWORK], NETWORK), NetworkConfig, NETWORK),
            SourceHistogram.from_dict(_parsed(files[HISTOGRAM], HISTOGRAM)),
            {name: value.float() for name, value in load_tensors(files[WEIGHTS]).items()},
            _sha256(files[SUMS]),
        )
    except (SRCSMError, SafetensorError, ValueError) as error:
        raise BundleError(f"The model folder {folder} cannot be used: {error}") from error


def verify_bundle(folder: Path) -> list[str]:
    """What is wrong with a bundle's files: missing, altered and extra ones; empty where whole."""
    return _read(Path(folder))[1]


def is_bundle(folder: Path) -> bool:
    """True where a folder looks like a bundle, whole or not."""
    return (Path(folder) / METADATA).is_file() or (Path(folder) / SUMS).is_file()


def find_bundles(*folders: Path) -> list[Path]:
    """The bundles among `folders` and their direct subfolders, in order, by name."""
    found = []
    for folder in map(Path, folders):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        # A name with a dot is one that is being written, or was when the power failed.
        shown = [path for path in inside if not path.name.startswith(".")]
        found += [path for path in (folder, *shown) if is_bundle(path)]
    return found


def shipped_models_folder() -> Path:
    """``$SRCSM_MODELS``, or the repository's ``Resources/Models``."""
    repository = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("SRCSM_MODELS", repository / "Resources" / "Models"))


def _read(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Every listed file's bytes, so that what was checked is what is used, and the faults."""
    try:
        sums = (folder / SUMS).read_bytes()
        listed = {path: digest for digest, path in _entries(sums.decode("utf-8"))}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return {}, [f"{SUMS} cannot be read ({reason})"]
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    } - {SUMS}
    files, faults = {SUMS: sums}, []
    for path in sorted({*REQUIRED, *listed, *present}):
        if path not in present:
            faults.append(f"{path} is missing")
        elif path not in listed:
            faults.append(f"{path} is not listed in {SUMS}")
        elif (folder / path).is_symlink():
            faults.append(f"{path} is a link")
        else:
            try:
                files[path] = (folder / path).read_bytes()
            except OSError as error:
                faults.append(f"{path} cannot be read ({error.strerror})")
                continue
            if _sha256(files[path]) != listed[path]:
                faults.append(f"{path} is altered")
    return files, faults


def _entries(sums: str) -> Iterator[tuple[str, str]]:
    for line in sums.splitlines():
        digest, separator, path = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ValueError(f"odd line {line[:80]!r}")
        yield digest, path


def _write(files: dict[str, bytes], folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    older = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        for path, content in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
        if folder.exists():
            os.replace(folder, older)
        os.replace(temporary, folder)
    except OSError as error:
        if older.exists():
            os.replace(older, folder)
        raise BundleError(
            f"Cannot write the model folder {folder} ({error.strerror}); nothing was changed."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(older, ignore_errors=True)


def _metadata(bundle: ModelBundle) -> dict[str, Any]:
    """MONAI's metadata; what `load_bundle` reads is under "srcsm"."""
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
    found = ours.pop("format_version")
    if found != FORMAT_VERSION:
        newer = isinstance(found, int) and found > FORMAT_VERSION
        remedy = "update this program" if newer else "export the network anew"
        raise BundleError(
            f"its format is {found!r}, this program reads {FORMAT_VERSION}; {remedy}."
        )
    return _typed(ours, Description, f"{METADATA}: srcsm")


def _typed(value: Any, hint: Any, where: str) -> Any:  # noqa: ANN401
    """A JSON value as the annotated type, to the letter: no key too few or many, no conversion."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise BundleError(f"{where} needs exactly the keys {', '.join(hints)}.")
        return hint(**{key: _typed(value[key], hints[key], f"{where}.{key}") for key in hints})
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list) or (kinds[-1] is not ... and len(value) != len(kinds)):
            raise BundleError(f"{where} needs a list like {hint}, not {value!r}.")
        return tuple(_typed(item, kinds[0], f"{where}[{n}]") for n, item in enumerate(value))
    if typing.get_origin(hint) is types.UnionType:
        return None if value is None else _typed(value, typing.get_args(hint)[0], where)
    allowed = (int, float) if hint is float else hint
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise BundleError(f"{where} needs a value of type {hint.__name__}, not {value!r}.")
    return hint(value)


def _parsed(content: bytes, where: str) -> Any:  # noqa: ANN401
    def refuse(constant: str) -> None:
        raise BundleError(f"{where} holds {constant}.")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is no JSON ({error}).") from error


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
