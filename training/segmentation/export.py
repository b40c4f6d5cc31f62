# SPDX-License-Identifier: Apache-2.0
"""Export of a trained network: its description, its signature and its card."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.label_groups import groups_of
from SRCSMSegmenterLib.models.bundle import Description, ModelBundle
from SRCSMSegmenterLib.source_matching import SourceHistogram
from SRCSMSegmenterLib.terminology import readable, segment_for

from ..engine.config import to_dict
from ..engine.progress import Progress
from ..engine.run_folder import Run, best_validation, command_line, dice_table, write_text
from ..engine.source_domain import Source
from .training import Weights


@dataclass(frozen=True)
class Signature:
    """Names and terms that whoever trained a network gives it.

    Attributes:
        name: of the network; "" takes that of the run's folder.
        author: one or several, as they want to be named.
        licence: terms of use, in words.
        version: of the network.
        description: one line; "" names its labels and its modality.
    """

    name: str = ""
    author: str = "not named"
    licence: str = "Weights under the terms of the training data; research use only"
    version: str = "0.1.0"
    description: str = ""


def kept_signature(folder: Path, given: Signature) -> Signature:
    """Keep a signature in a run's folder, with what an earlier call of the run was given.

    Args:
        given: its fields that differ from the defaults count, and replace those kept before.
    """
    path = folder / "signature.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    default = asdict(Signature())
    kept |= {key: text for key, text in asdict(given).items() if text != default[key]}
    write_text(path, json.dumps(kept, indent=1))
    return Signature(**{key: kept.get(key, text) for key, text in default.items()})


def model_card(bundle: ModelBundle) -> str:
    """Write the model card of a newly trained network, Markdown."""
    description, training = bundle.description, bundle.description.training
    return f"""# {description.name}

{description.task}.

**Research use only. Not for diagnosis.**

- Expects: {description.expects}
- Version: {description.version}
- Authors: {description.authors}
- Licence: {description.licence}
- Labels: {", ".join(f"{label.value} {label.name}" for label in description.labels)}
- Without air, in CT: {", ".join(description.airless) or "none known"}

## Training

- Data: {training["dataset"]}, {training["training_cases"]} cases for training,
  {training["validation_cases"]} for validation
- Random convolution: {training["random_convolution"]}; steps: {training["steps"]}{_pairs(training)}
- Command: `{training["command"]}`
- Weights: {training.get("weights", "of the best validation")}

## Source validation

Dice on the network's grid, averaged weights, the best of all validations of the training:

{dice_table(training["validation_dice"])}
"""


def _pairs(training: dict) -> str:
    """Write the line of the model card for a training on pairs; "" for others."""
    chosen = training["config"]["pairs"]
    if not chosen["use"]:
        return ""
    looks = "restyled by diffusion" if chosen["styled"] else "under random convolution"
    return f"\n- Pairs with slices {looks}; weight of contrast: {chosen['contrast']:g}"


def make_bundle(
    signature: Signature,
    run: Run,
    source: Source,
    rule: IntensityRule,
    progress: Progress,
    weights: Weights,
) -> ModelBundle:
    """Put a trained network and its description together.

    Args:
        signature: with a name.
        progress, weights: of the end of the training.
    """
    config, labels = run.config, run.labels
    stored = json.loads((run.folder / "source_histogram.json").read_text(encoding="utf-8"))
    organs = ", ".join(readable(label) for label in labels)
    description = Description(
        name=signature.name,
        task=signature.description
        or f"Segments {organs}; trained on {rule.modality} alone, made for other modalities too",
        labels=tuple(segment_for(label, value) for value, label in enumerate(labels, 1)),
        rule=rule,
        grid=config.grid,
        smoothing=config.data.smoothing,
        expects=f"{_input_of(rule)}; other modalities with source matching on",
        licence=signature.licence,
        groups=groups_of(source.dataset.groups, labels),
        version=signature.version,
        authors=signature.author,
        copyright=signature.author,
        training={
            "dataset": source.dataset.name,
            "training_cases": len(source.training),
            "validation_cases": len(source.validation),
            "random_convolution": config.random_convolution,
            "steps": progress.step,
            "command": command_line(),
            "validation_dice": best_validation(progress, labels),
            "config": to_dict(config),
        },
    )
    histogram = SourceHistogram.from_dict(stored)
    return ModelBundle(description, config.network, histogram, weights)


def _input_of(rule: IntensityRule) -> str:
    if rule.modality == "MR":
        return "MR of the trained region, any scale of intensities"
    return f"CT in Hounsfield units, clipped to {rule.window[0]:g} to {rule.window[1]:g} HU"
