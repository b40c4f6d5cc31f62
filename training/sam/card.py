# SPDX-License-Identifier: Apache-2.0
"""The model card and the training record of a SAM."""

from SAMRefineLib.sam.models import SamModel

from ..engine.config import to_dict
from ..engine.progress import Progress
from ..engine.run_folder import Run, best_validation, dice_table
from ..engine.source_domain import Source

LICENCE = "Weights under the terms of the training data; research use only.\n"


def summary(run: Run, source: Source, progress: Progress) -> dict:
    """Summarise a training for the SAM's folder, plain JSON values."""
    return {
        "dataset": source.dataset.name,
        "modality": source.modality,
        "training_cases": len(source.training),
        "validation_cases": len(source.validation),
        "steps": progress.step,
        "validation_dice": best_validation(progress, run.labels),
        "config": to_dict(run.config),
    }


def sam_card(model: SamModel, licence: str = LICENCE) -> str:
    """Write the model card of a SAM, Markdown."""
    training = model.training
    return f"""# {model.name}

A SAM ({model.kind}) that outlines what a box surrounds, trained on {training["modality"]} alone.

**Research use only. Not for diagnosis.**

- Expects: slices of CT or MR, and boxes around organs
- Licence: {licence.strip()}

## Training

- Data: {training["dataset"]}, {training["training_cases"]} cases for training,
  {training["validation_cases"]} for validation
- Random convolution: {training["config"]["random_convolution"]}; steps: {training["steps"]}

## Source validation

Dice on tiles around the organs, the best of all validations:

{dice_table(training["validation_dice"])}
"""
