# SPDX-License-Identifier: Apache-2.0
"""Dice of networks on held-out cases of their source, as it is and under other looks.

    python -m srcsm_training.experiments.source_validation abdomen-ct \\
        --data ../shared/data/Dataset103_AbdomenCT13

The held-out cases and the looks are those of the validation during training: random ones and, of a
CT, those of `SEQUENCES`. The network itself tells which cases it was not trained on.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from srcsm_training.engine.config import from_dict
from srcsm_training.engine.source_domain import open_source
from srcsm_training.segmentation.config import TrainingConfig
from srcsm_training.segmentation.presets import preset
from srcsm_training.segmentation.run import label_order, make_accelerator
from srcsm_training.segmentation.training import validation_scores
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle
from SRCSMSegmenterLib.models.catalogue import find_model


def validate(bundle: ModelBundle, dataset_folder: Path) -> dict[str, list[float]]:
    """Compute the Dice of a network on the cases of its source that it was not trained on.

    Returns:
        Kind of look -> Dice per label.
    """
    rule = bundle.description.rule
    config: TrainingConfig = from_dict(
        bundle.description.training["config"], preset("abdomen-fast")
    )
    config = replace(config, network=bundle.network)
    source = open_source(dataset_folder, config.data, check=False)
    names = [label.name for label in bundle.description.labels]
    order = label_order(source.dataset.labels, config.data.outputs)
    unseen = replace(source, training=[])
    cases = unseen.prepared(rule, config.data.smoothing, config.grid, None, order, len(names))
    computing = make_accelerator("auto", config)
    return validation_scores(bundle.unet(), cases, config, rule, computing.accelerator, names)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of the networks, a row each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="names or folders of networks of one source")
    parser.add_argument("--data", type=Path, required=True, help="the dataset of their training")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="LABEL", help="average these labels alone"
    )
    arguments = parser.parse_args(argv)
    for number, model in enumerate(arguments.models):
        bundle = load_bundle(find_model(model))
        names = [label.name for label in bundle.description.labels]
        scores = validate(bundle, arguments.data)
        if not number:
            print(f"| network | {' | '.join(scores)} |\n{'| --- ' * (len(scores) + 1)}|")
        chosen = [n for n, name in enumerate(names) if name in (arguments.only or names)]
        means = (f"{np.nanmean(np.array(dice)[chosen]):.3f}" for dice in scores.values())
        print(f"| {bundle.description.name} | {' | '.join(means)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
