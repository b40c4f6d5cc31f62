# SPDX-License-Identifier: Apache-2.0
"""Publish a trained network or SAM among the shipped ones, with licence and scores on its card.

    python -m srcsm_training.experiments.publish runs/abdomen-ct --name abdomen-ct \\
        --data "BTCV (Synapse syn3193805)" --licence "CC BY 4.0" \\
        --scores "source validation=runs/abdomen-ct/on-ct" "MR=runs/abdomen-ct/on-mr"
    python -m srcsm_training.experiments.publish runs/abdomen-ct --name abdomen-ct \\
        --mean-with abdomen-ct --data "BTCV (Synapse syn3193805)" --licence "CC BY 4.0"
        the mean of its weights and of those that it went on from (`start`)
    python -m srcsm_training.experiments.publish runs/sam-small-ct --name sam-small-ct \\
        --data "BTCV (Synapse syn3193805)" --licence "CC BY 4.0"
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from SAMRefineLib.sam.catalogue import is_sam
from SAMRefineLib.sam.models import load_sam, save_sam
from srcsm_training.sam.card import sam_card
from srcsm_training.segmentation.export import model_card
from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.models.bundle import (
    ModelBundle,
    load_bundle,
    save_bundle,
)
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Publish one network or SAM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished training")
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", required=True, help="source of the training data")
    parser.add_argument("--licence", required=True, help="licence of the training data")
    parser.add_argument(
        "--scores",
        nargs="*",
        default=[],
        metavar="TITLE=FOLDER",
        help="results of `srcsm evaluate`",
    )
    parser.add_argument(
        "--mean-with", metavar="MODEL", help="network whose weights are averaged with the run's"
    )
    arguments = parser.parse_args(argv)
    terms = f"{arguments.licence}, as the training data: {arguments.data}; research use only"
    source, target = arguments.run / "model", shipped_models_folder() / arguments.name
    if is_sam(source):
        sam = replace(load_sam(source, device="cpu"), name=arguments.name)
        card = f"{sam_card(sam, terms)}\nScores on the other modality stand in BENCHMARKS.md.\n"
        identity = save_sam(target, sam, card, f"{terms}\n")
    else:
        bundle = load_bundle(source)
        if arguments.mean_with:
            bundle = mean_bundle(load_bundle(arguments.mean_with), bundle)
        identity = publish_bundle(bundle, target, terms, arguments.scores)
    print(f"{target}: {identity}")
    return 0


def mean_bundle(start: ModelBundle, trained: ModelBundle) -> ModelBundle:
    """Average the weights of a network and of the one that it went on from.

    Both lie in one basin, so that their mean is a network too, which is at least as good on other
    domains (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).

    Args:
        start: the network before the training.
        trained: the network after it; all but the weights stays its own.

    Raises:
        BundleError: the networks, their labels or their intensity rules differ.
    """
    one, other = ((b.network, b.description.labels, b.description.rule) for b in (start, trained))
    if one != other:
        raise BundleError(
            f'The mean of "{start.description.name}" and "{trained.description.name}" is none, as '
            "their networks, labels or intensities differ; take the network that the training "
            "started from."
        )
    weights = {name: (start.weights[name] + value) / 2 for name, value in trained.weights.items()}
    begun = start.identify()
    mean = f"mean of this training's and of those of {begun['name']} {begun['version']}, the start"
    training = {**trained.description.training, "weights": mean}
    return replace(
        trained, weights=weights, description=replace(trained.description, training=training)
    )


def publish_bundle(bundle: ModelBundle, target: Path, terms: str, scores: Sequence[str]) -> str:
    """Write a network with scores on its card, and return its identity.

    Args:
        target: folder to write to.
        terms: licence of the weights, a sentence.
        scores: "TITLE=FOLDER" each, results of `srcsm evaluate`.
    """
    bundle = replace(
        bundle, description=replace(bundle.description, name=target.name, licence=terms)
    )
    tables = []
    for score in scores:
        title, _, folder = score.partition("=")
        tables.append(scores_table(title, Path(folder) / "metrics.json"))
    card = "\n".join([model_card(bundle), "## Numbers on whole scans", "", *tables])
    return save_bundle(target, bundle, card)


def scores_table(title: str, metrics: Path) -> str:
    """Format mean Dice and ASSD per label and setting of source matching as Markdown."""
    content = json.loads(metrics.read_text(encoding="utf-8"))
    lines = ["| data | SM | label | Dice | ASSD mm |", "| --- | --- | --- | --- | --- |"]
    for row in [*content["labels"], *({**mean, "label": "mean"} for mean in content["means"])]:
        assd = "–" if row["assd_mean"] is None else f"{row['assd_mean']:.1f}"
        lines.append(
            f"| {title} | {row['source_matching']} | {row['label'].replace('_', ' ')} "
            f"| {row['dice_mean']:.3f} | {assd} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
