# SPDX-License-Identifier: Apache-2.0
"""Put a trained network among the shipped ones, with its licence and its numbers on the card.

    python training/ship.py runs/abdomen-ct --name abdomen-ct \\
        --data "BTCV (Synapse syn3193805)" --licence "CC BY 4.0" \\
        --scores "source validation=runs/abdomen-ct/on-ct" "MR=runs/abdomen-ct/on-mr"
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from srcsm_training.run import model_card
from SRCSMSegmenterLib.bundle import load_bundle, save_bundle, shipped_models_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Ship one network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished training")
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", required=True, help="where the training data come from")
    parser.add_argument("--licence", required=True, help="of the training data")
    parser.add_argument(
        "--scores", nargs="*", default=[], metavar="TITLE=FOLDER", help="of `srcsm evaluate`"
    )
    arguments = parser.parse_args(argv)
    bundle = load_bundle(arguments.run / "model")
    terms = f"{arguments.licence}, as the training data: {arguments.data}; research use only"
    bundle = replace(
        bundle, description=replace(bundle.description, name=arguments.name, licence=terms)
    )
    tables = []
    for scores in arguments.scores:
        title, _, folder = scores.partition("=")
        tables.append(scores_table(title, Path(folder) / "metrics.json"))
    card = "\n".join([model_card(bundle), "## Numbers on whole scans", "", *tables])
    identity = save_bundle(shipped_models_folder() / arguments.name, bundle, card)
    print(f"{shipped_models_folder() / arguments.name}: {identity}")
    return 0


def scores_table(title: str, metrics: Path) -> str:
    """Mean Dice and ASSD per label and setting of source matching, Markdown."""
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
