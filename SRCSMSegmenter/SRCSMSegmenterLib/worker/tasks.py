# SPDX-License-Identifier: Apache-2.0
"""Tasks of a worker: a module with a table TASKS of functions, such as this one.

A task is called as task(parameters, arrays, context) and returns its reply (plain JSON values) and
its arrays. Tasks import torch in their functions, so that a worker starts at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import BundleError, Cancelled
from ..geometry import Geometry, Volume
from ..modality import modality_of
from ..models.catalogue import find_bundles, find_model, shipped_models_folder
from ..models.hashed_folder import SUMS, sha256
from ..schema import convert_keys
from ..terminology import Segment, terminology_entry
from .protocol import RequestError

if TYPE_CHECKING:
    from ..inference import Segmentation
    from ..models.bundle import Description, ModelBundle


@dataclass(frozen=True)
class Context:
    """The callbacks and the cached models that a task gets besides its input.

    Attributes:
        progress: function to call with the stage and the fraction of the whole that is done.
        cancelled: function to ask often; if it returns True, raise `Cancelled`.
        log: function to call with a line for the user.
        models: those kept from one task to the next.
    """

    progress: Callable[[str, float], None]
    cancelled: Callable[[], bool]
    log: Callable[[str], None]
    models: "Models"


class Models:
    """Cache of loaded models and other costly things, the `limit` last used."""

    def __init__(self, limit: int = 4) -> None:
        self._limit = limit
        self._kept: dict[str, Any] = {}

    def get(self, key: str, load: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return what is kept under `key`, such as a model's SHA-256, else what `load` returns."""
        value = self._kept.pop(key) if key in self._kept else load()
        self._kept[key] = value
        while len(self._kept) > self._limit:
            del self._kept[next(iter(self._kept))]
        return value


Task = Callable[
    [dict[str, Any], dict[str, np.ndarray], Context], tuple[dict[str, Any], dict[str, np.ndarray]]
]


GRID = {
    "size": tuple[int, int, int],
    "affine": tuple[float, ...] | tuple[tuple[float, ...], ...],
}
"""Parameters of `Geometry.to_json`, and their types."""

SEGMENT_OPTIONS = {
    "modality": Literal["CT", "MR"],
    "source_matching": Literal["on", "off", "auto"],
    "device": str,
    "organs": tuple[str, ...],
    "keep_largest": bool,
    "probabilities": bool,
}
"""Parameters of the task "segment" that may be left out, and their types."""


def check_request(
    parameters: dict[str, Any], required: dict[str, type], optional: dict[str, type]
) -> None:
    """Check the types of a request's parameters; None stands for one that is left out.

    Raises:
        RequestError: one is missing or of another type.
    """
    given = {key: kind for key, kind in optional.items() if parameters.get(key) is not None}
    convert_keys(parameters, {**required, **given}, "The request", RequestError)


def ping(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the input."""
    return parameters, arrays


def devices(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """List the devices: {devices: names, the fastest first, "cpu" last}."""
    from ..devices import available_devices

    return {"devices": available_devices()}, {}


def describe_models(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Describe models, each checked file by file.

    Args:
        parameters: {models: names of shipped models, or folders; None or absent: all shipped}.

    Returns:
        {models: [...]}, for each {folder, name, version, identity, task, modality, labels, expects,
        licence}, or {folder, error} if it cannot be used.
    """
    from ..models.bundle import load_bundle

    check_request(parameters, {}, {"models": tuple[str, ...]})
    wanted = parameters.get("models")
    if wanted is None:
        wanted = map(str, find_bundles(shipped_models_folder()))
    rows = []
    for model in wanted:
        try:
            folder = find_model(model)
            bundle = load_bundle(folder)
        except BundleError as error:
            rows.append({"folder": model, "error": str(error)})
            continue
        description = bundle.description
        rows.append(
            {
                "folder": str(folder),
                **bundle.identify(),
                "task": description.task,
                "modality": description.rule.modality,
                "labels": [_label(label) for label in description.labels],
                "expects": description.expects,
                "licence": description.licence,
            }
        )
    return {"models": rows}, {}


@dataclass(frozen=True, eq=False)
class SegmentedScan:
    """A scan as the task "segment" labels it, before the reply is made of it.

    Attributes:
        result: labels and probabilities of all organs of the network.
        kept: labels that were asked for.
        modality: "CT" or "MR", as given or guessed.
        source_matching: whether the scan was matched to the network's source.
    """

    volume: Volume
    bundle: "ModelBundle"
    result: "Segmentation"
    kept: list[Segment]
    modality: str
    source_matching: bool
    device: str


def segment(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Segment a scan (`inference.segment`).

    Args:
        parameters: model: name of a shipped model, or folder; size, affine: see
            `Geometry.to_json`. May be left out: modality: "CT", "MR" or None (guessed);
            source_matching: "on", "off" or "auto" (see `source_matching.wanted`);
            device: see `resolve_device`; organs: names of the labels to keep, None for all;
            keep_largest: see `inference.segment`; probabilities: False does without.
        arrays: {image: raw intensities (K, J, I)}.

    Returns:
        Reply: labels: of those kept [{value, name, color, terminology}]; volumes_ml: {name: ml};
        least_certain: {name: [[slice, uncertainty], ...]}, see `Segmentation`; messages; model:
        {name, version, identity}; modality; source_matching: bool; device; seconds: per stage;
        first: of the probabilities, {label: (k, j, i)}, the first voxel of the block that holds
        them.
        Arrays: labels, uint8 or uint16 (K, J, I), 0 for other organs than those asked for;
        probability_LABEL of the organs kept, float16 (k, j, i), on that block and 0 beyond it.

    Raises:
        BundleError: no such model, or organ; VolumeError, SourceMatchingError, DeviceError,
        Cancelled: see `inference.segment`.
    """
    scan = segmented_scan(parameters, arrays, context)
    return segment_reply(scan, probabilities=parameters.get("probabilities", True))


def segmented_scan(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> SegmentedScan:
    """Do the work of the task "segment"; see there."""
    from ..devices import resolve_device
    from ..inference import segment as run
    from ..source_matching import wanted

    check_request(parameters, {"model": str, **GRID}, SEGMENT_OPTIONS)
    if "image" not in arrays:
        raise RequestError("The request lacks the array image.")
    context.progress("load", 0.0)
    bundle = _load(parameters["model"], context.models)
    description = bundle.description
    kept = _kept(description, parameters.get("organs"))
    volume = Volume(arrays["image"], Geometry.from_json(parameters))
    device = str(resolve_device(parameters.get("device", "auto")))
    given = parameters.get("modality")
    modality = modality_of(volume, given)
    matching = wanted(parameters.get("source_matching", "auto"), modality, description.rule)

    def progress(stage: str, fraction: float) -> None:
        if context.cancelled():
            raise Cancelled("The segmentation was cancelled; nothing was written.")
        context.progress(stage, fraction)

    result = run(
        volume,
        bundle,
        modality=given,
        source_matching=matching,
        device=device,
        keep_largest=parameters.get("keep_largest", True),
        progress=progress,
    )
    return SegmentedScan(volume, bundle, result, kept, modality, matching, device)


def segment_reply(
    scan: SegmentedScan, *, probabilities: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Make the reply and arrays of the task "segment"; see there."""
    from ..components import label_counts

    result, kept, known = scan.result, scan.kept, scan.bundle.description.labels
    labels, voxel_ml = result.labels.array, scan.volume.geometry.voxel_ml
    if len(kept) < len(known):
        values = [label.value for label in kept]
        table = np.zeros(len(known) + 1, labels.dtype)
        table[values] = values
        for plane in labels:
            plane[:] = table[plane]
    voxels = label_counts(labels, len(known) + 1)
    reply = {
        "labels": [_label(label) for label in kept],
        "volumes_ml": {label.name: int(voxels[label.value]) * voxel_ml for label in kept},
        "least_certain": {label.name: result.least_certain[label.value] for label in kept},
        "messages": result.messages,
        "model": scan.bundle.identify(),
        "modality": scan.modality,
        "source_matching": scan.source_matching,
        "device": scan.device,
        "seconds": result.seconds,
    }
    outputs = {"labels": labels}
    if probabilities:
        blocks = {label.value: result.probabilities.block(label.value) for label in kept}
        reply["first"] = {str(label): block.first for label, block in blocks.items()}
        outputs |= {f"probability_{label}": block.values for label, block in blocks.items()}
    return reply, outputs


def phantom(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Make a scan of the digital phantom.

    Args:
        parameters: patient, modality: see `phantom.scans.make_case`.

    Returns:
        The scan's grid (`Geometry.to_json`), and {image: (K, J, I)}.
    """
    from ..phantom.scans import make_case

    image, _ = make_case(parameters["patient"], parameters["modality"])
    return image.geometry.to_json(), {"image": image.array}


TASKS: dict[str, Task] = {
    "ping": ping,
    "phantom": phantom,
    "devices": devices,
    "describe_models": describe_models,
    "segment": segment,
}


def _load(model: str, models: Models) -> "ModelBundle":
    from ..models.bundle import load_bundle

    folder = find_model(model)
    sums = folder / SUMS  # its SHA-256 is the bundle's identity
    key = sha256(sums.read_bytes()) if sums.is_file() else str(folder)
    return models.get(key, lambda: load_bundle(folder))


def _kept(description: "Description", organs: list[str] | None) -> list[Segment]:
    names = [label.name for label in description.labels]
    if unknown := set(organs or ()) - set(names):
        raise BundleError(
            f"{description.name} does not know {', '.join(sorted(unknown))}; choose among "
            f"{', '.join(names)}."
        )
    return [label for label in description.labels if organs is None or label.name in organs]


def _label(label: Segment) -> dict[str, Any]:
    return {
        "value": label.value,
        "name": label.name,
        "color": label.color,
        "terminology": terminology_entry(label),
    }
