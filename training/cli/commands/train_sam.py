# SPDX-License-Identifier: Apache-2.0
"""``srcsm train-sam``."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from SAMRefineLib.sam.models import load_sam
from SRCSMSegmenterLib.errors import ConfigError

from ...engine.config import configured, to_dict
from ...engine.estimate import measure_training
from ...engine.run_folder import RunResult
from ...engine.source_domain import open_source
from ...sam.decoder import DecoderConfig, run_decoder_training
from ...sam.from_scratch import SamConfig, run_sam_training
from ..console import load_model, say
from .train import run_to_end


def run(arguments: argparse.Namespace) -> int:
    """Train a small SAM, or fine-tune one, or resume that, and say how it ended."""
    if bool(arguments.sam) != bool(arguments.coarse):
        raise ConfigError("Fine-tuning needs --sam and --coarse; training from nothing, neither.")
    if not (arguments.out or arguments.dry_run):
        raise ConfigError("srcsm train-sam needs --out; see srcsm train-sam --help.")
    if arguments.sam_kind and not arguments.sam:
        raise ConfigError("--sam-kind tells what the file of --sam is; give that too.")
    if arguments.sam and arguments.cache:
        raise ConfigError("Fine-tuning has no preprocessed cases; leave --cache out.")
    config = DecoderConfig() if arguments.sam else SamConfig()
    config = configured(config, arguments.config, arguments.set)
    if arguments.sam:
        coarse = load_model(arguments.coarse)
        sam = load_sam(arguments.sam, arguments.sam_kind, "cpu")

        def training(config: DecoderConfig, out: Path, **settings: Any) -> RunResult:  # noqa: ANN401
            return run_decoder_training(arguments.data, config, sam, coarse, out, **settings)
    else:

        def training(config: SamConfig, out: Path, **settings: Any) -> RunResult:  # noqa: ANN401
            return run_sam_training(arguments.data, config, out, cache=arguments.cache, **settings)

    if arguments.dry_run:
        source = open_source(arguments.data, config.data, say)
        say("Measuring some steps ...")
        estimate = measure_training(training, config, source.training, arguments.device)
        for line in estimate.lines(config.optimisation.steps):
            print(f"# {line}")
        print(yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None).rstrip())
        return 0
    return run_to_end(
        arguments,
        config.optimisation.steps,
        partial(training, config, arguments.out),
        "SAM: {model}\nNext: srcsm refine SCAN --boxes boxes.json --sam {model} -o organs.nii.gz",
    )
