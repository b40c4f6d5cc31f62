# SPDX-License-Identifier: Apache-2.0
"""``python -m srcsm_training.sam.deeplab``: the coarse network of the SAM paper."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import ConfigError

from . import arguments as options
from .failures import exit_code, sentence
from .runs import run_to_end
from .terminal import lenient_output

if TYPE_CHECKING:
    from ..engine.limits import Limits
    from ..engine.run_folder import RunResult

MODULE = "python -m srcsm_training.sam.deeplab"


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Train or predict, and return the exit code, as of `srcsm`."""
    arguments = _parser(description).parse_args(argv)
    with lenient_output():
        try:
            return arguments.run(arguments)
        except Exception as error:
            if arguments.debug:
                raise
            print(f"deeplab: error: {sentence(error)}", file=sys.stderr)
            return exit_code(error)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=MODULE,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training = options.add_command(
        commands,
        "train",
        "train the coarse network of the SAM paper, or resume",
        examples=f"  {MODULE} train --data Dataset101_AbdomenCT --out runs/deeplab\n"
        f"  {MODULE} train --help-config optimisation",
    )
    options.add_dataset(training, required=False)
    training.add_argument(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="torchvision's resnet50-*.pth (default: from nothing)",
    )
    options.add_run(training, result="the network's file", required=False)
    options.add_help_config(training, "store")
    options.add_device(training)
    training.set_defaults(run=_train)
    prediction = options.add_command(commands, "predict", "label the organs of a scan")
    options.add_scan(prediction)
    prediction.add_argument("--model", type=Path, required=True, metavar="FILE", help="the network")
    prediction.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the label map"
    )
    prediction.add_argument(
        "--confidence", type=Path, metavar="FILE", help="also write the probability of the labels"
    )
    options.add_modality(prediction)
    options.add_device(prediction)
    prediction.set_defaults(run=_predict)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    from ..engine.config import configured
    from ..engine.keys import describe
    from ..sam.deeplab_config import DeepLabConfig

    config = configured(DeepLabConfig(), arguments.config, arguments.set)
    if arguments.help_config is not None:
        print(describe(config, arguments.help_config))
        return 0
    if not arguments.data or not arguments.out:
        raise ConfigError(f"Training needs --data and --out; see {MODULE} train --help.")

    from ..sam.deeplab import run_training

    def training(limits: "Limits") -> "RunResult":
        return run_training(
            arguments.data,
            config,
            arguments.out,
            backbone=arguments.backbone,
            name=arguments.name,
            device=arguments.device,
            limits=limits,
        )

    done = f"Network: {{model}}\nNext: {MODULE} predict SCAN --model {{model}} -o organs.nii.gz"
    steps = config.optimisation.steps
    return run_to_end(training, arguments.out, steps, arguments.max_minutes, done)


def _predict(arguments: argparse.Namespace) -> int:
    import numpy as np

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.volume_io import read_volume, write_volume

    from ..sam.deeplab import load, predict

    volume = read_volume(arguments.scan)
    coarse = load(arguments.model, arguments.device)
    probabilities = predict(volume, coarse, arguments.modality)
    labels = (probabilities.argmax(0) + 1) * (probabilities.max(0) >= 0.5)
    write_volume(arguments.output, Volume(labels.astype(np.uint8), volume.geometry))
    if arguments.confidence:
        sure = np.where(labels > 0, probabilities.max(0), 1 - probabilities.max(0))
        write_volume(arguments.confidence, Volume(sure.astype(np.float32), volume.geometry))
    return 0
