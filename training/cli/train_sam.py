# SPDX-License-Identifier: Apache-2.0
"""``srcsm train-sam``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SRCSMSegmenterLib.errors import ConfigError

from . import arguments as options
from .console import say
from .runs import run_to_end

if TYPE_CHECKING:
    from ..engine.limits import Limits
    from ..engine.run_folder import RunResult
    from ..sam.decoder import DecoderConfig
    from ..sam.from_scratch import SamConfig


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "train-sam",
        "train a small SAM from scratch, or fine-tune a SAM's mask decoder; or resume either",
        "The dataset is the source, an nnU-Net raw dataset. With --sam, image encoder and prompt\n"
        "encoder stay unchanged; the boxes are those of the coarse network --coarse. Ctrl-C stops\n"
        "after the step, with a checkpoint; the same command resumes from it. The SAM is the\n"
        "folder RUN/model.",
        "  srcsm train-sam --data Dataset101_AbdomenCT --out runs/sam-ct\n"
        "  srcsm train-sam --data Dataset101_AbdomenCT --sam sam_vit_b_01ec64.pth \\\n"
        "      --coarse abdomen-ct --out runs/vit-b-ct --device cuda\n"
        "  srcsm train-sam --data Dataset101_AbdomenCT --sam sam-small-ct --coarse abdomen-ct \\\n"
        "      --set embed_once=false random_convolution=smoothed --out runs/sam-ct-src\n"
        "  srcsm train-sam --data Dataset101_AbdomenCT --dry-run\n"
        "  srcsm train-sam --help-config tiles\n"
        "  srcsm train-sam --sam sam-small-ct --help-config theta1",
    )
    options.add_dataset(parser, required=False, also=f"{options.PACKED} (without --sam)")
    options.add_sam(parser, "SAM to fine-tune: a shipped SAM, a SAM folder or a checkpoint file")
    parser.add_argument(
        "--coarse", metavar="NAME_OR_FOLDER", help="with --sam: the network that draws the boxes"
    )
    options.add_cache(parser, "without --sam; ")
    options.add_run(parser, required=False)
    options.add_help_config(parser, "store")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration and the time and memory the training needs here",
    )
    options.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train a small SAM, or fine-tune a SAM, or resume either, and say how it ended."""
    if arguments.help_config is not None:
        print(help_config(arguments))
        return 0
    if bool(arguments.sam) != bool(arguments.coarse):
        raise ConfigError("Fine-tuning needs --sam and --coarse; training from scratch, neither.")
    if not arguments.data or not (arguments.out or arguments.dry_run):
        raise ConfigError("srcsm train-sam needs --data and --out; see srcsm train-sam --help.")
    if arguments.sam_kind and not arguments.sam:
        raise ConfigError("--sam-kind tells what the file of --sam is; give that too.")
    if arguments.sam and arguments.cache:
        raise ConfigError("Fine-tuning has no preprocessed cases; leave --cache out.")

    from ..engine.config import configured

    if arguments.sam:
        from ..sam.decoder import DecoderConfig

        config, start = DecoderConfig(), _fine_tuning(arguments)
    else:
        from ..sam.from_scratch import SamConfig

        config, start = SamConfig(), _from_scratch(arguments)
    config = configured(config, arguments.config, arguments.set)
    if arguments.dry_run:
        print(dry_run(arguments, config, start))
        return 0

    def training(limits: "Limits") -> "RunResult":
        return start(
            config,
            arguments.out,
            name=arguments.name,
            device=arguments.device,
            limits=limits,
        )

    done = "SAM: {model}\nNext: srcsm refine SCAN --boxes boxes.json --sam {model} -o organs.nii.gz"
    steps = config.optimisation.steps
    return run_to_end(training, arguments.out, steps, arguments.max_minutes, done)


def help_config(arguments: argparse.Namespace) -> str:
    """Explain the keys of the configuration: with --sam, of the fine-tuning."""
    from ..engine.config import configured
    from ..engine.keys import describe
    from ..sam.decoder import DecoderConfig
    from ..sam.from_scratch import SamConfig

    config = DecoderConfig() if arguments.sam else SamConfig()
    return describe(configured(config, arguments.config, arguments.set), arguments.help_config)


def dry_run(
    arguments: argparse.Namespace,
    config: "DecoderConfig | SamConfig",
    start: Callable[..., "RunResult"],
) -> str:
    """Measure a few steps.

    Returns:
        The configuration as YAML; as comments the time and memory of the training.
    """
    from ..engine.config import as_yaml
    from ..engine.estimate import measure_training
    from ..engine.source_domain import open_source

    source = open_source(arguments.data, config.data, say)
    say("Measuring some steps ...")
    estimate = measure_training(start, config, source.training, arguments.device)
    lines = [f"# {line}" for line in estimate.lines(config.optimisation.steps)]
    return "\n".join([*lines, as_yaml(config)])


def _fine_tuning(arguments: argparse.Namespace) -> Callable[..., "RunResult"]:
    """Return start(config, out, **settings of `run_decoder_training`)."""
    from SAMRefineLib.sam.models import load_sam
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model

    from ..sam.decoder import run_decoder_training

    coarse = load_bundle(find_model(arguments.coarse))
    sam = load_sam(arguments.sam, arguments.sam_kind, "cpu")

    def start(config: "DecoderConfig", out: Path, **settings: Any) -> "RunResult":  # noqa: ANN401
        return run_decoder_training(arguments.data, config, sam, coarse, out, **settings)

    return start


def _from_scratch(arguments: argparse.Namespace) -> Callable[..., "RunResult"]:
    """Return start(config, out, **settings of `run_sam_training`)."""
    from ..sam.from_scratch import run_sam_training

    def start(config: "SamConfig", out: Path, **settings: Any) -> "RunResult":  # noqa: ANN401
        return run_sam_training(arguments.data, config, out, cache=arguments.cache, **settings)

    return start
