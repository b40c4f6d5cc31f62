# SPDX-License-Identifier: Apache-2.0
"""``srcsm train-sam``."""

import argparse
from functools import partial

from SRCSMSegmenterLib.errors import ConfigError

from ..config import configured
from ..sam_decoder import DecoderConfig, run_decoder_training
from ..sam_training import SamConfig, run_sam_training
from .common import load_model
from .train import run_to_end


def run(arguments: argparse.Namespace) -> int:
    """Train a small SAM, or fine-tune one, or resume that, and say how it ended."""
    if bool(arguments.sam) != bool(arguments.coarse):
        raise ConfigError("Fine-tuning needs --sam and --coarse; training from nothing, neither.")
    if arguments.sam_kind and not arguments.sam:
        raise ConfigError("--sam-kind tells what the file of --sam is; give that too.")
    if arguments.sam and arguments.cache:
        raise ConfigError("Fine-tuning has no preprocessed cases; leave --cache out.")
    config = DecoderConfig() if arguments.sam else SamConfig()
    config = configured(config, arguments.config, arguments.set)
    if arguments.sam:
        training = partial(
            run_decoder_training,
            arguments.data,
            config,
            arguments.sam,
            load_model(arguments.coarse),
            arguments.out,
            kind=arguments.sam_kind,
        )
    else:
        training = partial(
            run_sam_training, arguments.data, config, arguments.out, cache=arguments.cache
        )
    return run_to_end(
        arguments,
        config.optimisation.steps,
        training,
        "SAM: {model}\nNext: srcsm refine SCAN --boxes boxes.json --sam {model} -o organs.nii.gz",
    )
