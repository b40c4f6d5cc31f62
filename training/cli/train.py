# SPDX-License-Identifier: Apache-2.0
"""``srcsm train``."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import ConfigError

from . import arguments as options
from .console import say
from .runs import run_to_end

if TYPE_CHECKING:
    from ..engine.limits import Limits
    from ..engine.run_folder import RunResult
    from ..segmentation.config import TrainingConfig
    from ..segmentation.export import Signature


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "train",
        "train a network on an nnU-Net raw dataset, or resume a training",
        "Ctrl-C stops after the step, with a checkpoint; the same command resumes from the last\n"
        "checkpoint. The trained network is the folder RUN/model.",
        "  srcsm train --data Dataset101_AbdomenCT --preset abdomen-fast --out runs/ct\n"
        "  srcsm train --data Dataset101_AbdomenCT --preset abdomen-paper --out runs/paper \\\n"
        "      --set optimisation.steps=20000 data.folds=0 --device cuda --max-minutes 60\n"
        "  srcsm train --data Dataset101_AbdomenCT --preset abdomen-fast --out runs/ct \\\n"
        "      --extend --set optimisation.steps=12000 --author Student --licence CC-BY-4.0\n"
        "  srcsm train --data Dataset101_AbdomenCT --preset abdomen-fast --dry-run\n"
        "  srcsm train --preset abdomen-fast --help-config optimisation\n"
        "  srcsm train --data Dataset101_AbdomenCT --preset icm --out runs/icm \\\n"
        "      --set pairs.styled=[slices/ct/styled/abdomen]\n"
        "  accelerate launch --num_processes 4 training/train.py --data Dataset101_AbdomenCT \\\n"
        "      --preset abdomen-paper --out runs/four-gpus",
    )
    options.add_dataset(parser, required=False, also=options.PACKED)
    parser.add_argument("--preset", metavar="NAME", help="configuration to start from")
    options.add_run(
        parser,
        config="values that replace the preset's",
        result="the trained network",
        required=False,
    )
    options.add_signature(parser)
    parser.add_argument(
        "--logger",
        choices=("tensorboard", "wandb", "mlflow"),
        default="tensorboard",
        help="where curves, previews and the configuration go beside RUN (default: tensorboard, "
        "in RUN/tensorboard); the others need their packages",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="go on with the training in --out to a larger optimisation.steps; a schedule that "
        "falls is that of the new number of steps, so the learning rate rises again",
    )
    options.add_cache(parser)
    options.add_help_config(parser, "store")
    parser.add_argument("--list-presets", action="store_true", help="list the presets and exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the dataset, and print the configuration and the time and memory it needs here",
    )
    options.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, or resume a training, and say how it ended."""
    if arguments.list_presets:
        print(presets_as_text())
        return 0
    if arguments.help_config is not None:
        print(help_config(arguments))
        return 0
    needed = {"--data": arguments.data, "--preset": arguments.preset}
    if not arguments.dry_run:
        needed["--out"] = arguments.out
    if missing := [option for option, value in needed.items() if value is None]:
        raise ConfigError(f"srcsm train needs {' and '.join(missing)}; see srcsm train --help.")

    from ..engine.config import configured
    from ..segmentation.presets import preset
    from ..segmentation.run import run_training

    config = configured(preset(arguments.preset), arguments.config, arguments.set)
    if arguments.dry_run:
        print(dry_run(arguments, config))
        return 0

    def training(limits: "Limits") -> "RunResult":
        return run_training(
            arguments.data,
            config,
            arguments.out,
            signature=signature(arguments),
            extend=arguments.extend,
            device=arguments.device,
            cache=arguments.cache,
            limits=replace(limits, logger=arguments.logger),
        )

    done = "Network: {model}\nNext: srcsm segment SCAN --model {model} -o labels.nii.gz"
    steps = config.optimisation.steps
    return run_to_end(training, arguments.out, steps, arguments.max_minutes, done)


def signature(arguments: argparse.Namespace) -> "Signature":
    """Return the signature of the exported network, with defaults for options not given."""
    from ..segmentation.export import Signature

    given = {
        "name": arguments.name,
        "author": arguments.author,
        "licence": arguments.licence,
        "version": arguments.model_version,
        "description": arguments.description,
    }
    return Signature(**{key: text for key, text in given.items() if text})


def help_config(arguments: argparse.Namespace) -> str:
    """Explain the keys of the configuration, by default with the paper's values."""
    from ..engine.config import configured
    from ..engine.keys import describe
    from ..segmentation.presets import preset

    base = preset(arguments.preset or "abdomen-paper")
    config = configured(base, arguments.config, arguments.set)
    return describe(config, arguments.help_config)


def dry_run(arguments: argparse.Namespace, config: "TrainingConfig") -> str:
    """Check the dataset and measure a few steps.

    Returns:
        The configuration as YAML; as comments the cases and the time and memory of the training.
    """
    from ..engine.config import as_yaml
    from ..engine.estimate import measure_training
    from ..engine.source_domain import intensity_rule, open_source
    from ..segmentation.restyled import open_restyled
    from ..segmentation.run import run_training

    source = open_source(arguments.data, config.data, say)
    dataset, cases, validation = source.dataset, source.training, source.validation
    open_restyled(config, dataset, cases)
    rule = intensity_rule(config.data, source)
    config = replace(config, network=replace(config.network, classes=len(dataset.labels) + 1))
    say("Measuring some steps ...")
    estimate = measure_training(
        lambda config, out, **settings: run_training(
            arguments.data, config, out, cache=arguments.cache, **settings
        ),
        config,
        cases,
        arguments.device,
    )
    lines = [
        f"# {dataset.name}: {', '.join(dataset.labels)}",
        f"# intensities: {rule}",
        f"# training: {', '.join(case.name for case in cases)}",
        f"# validation: {', '.join(case.name for case in validation) or 'none'}",
        *(f"# {line}" for line in estimate.lines(config.optimisation.steps)),
        as_yaml(config),
    ]
    return "\n".join(lines)


def presets_as_text() -> str:
    """Format the presets, a line each, and the published settings with their data."""
    from ..data.downloads import DOWNLOADS
    from ..segmentation.presets import PRESETS
    from ..segmentation.published import SETTINGS

    lines = [f"{'preset':<16} {'voxels':<16} {'spacing (mm)':<18} {'steps':<6} axes"]
    for name, config in PRESETS.items():
        size = " x ".join(map(str, config.grid.size))
        spacing = " x ".join(f"{value:g}" for value in config.grid.spacing)
        steps = config.optimisation.steps
        lines.append(f"{name:<16} {size:<16} {spacing:<18} {steps:<6} {config.grid.axes}")
    lines.append("The grids of icm, icm-spine and icm-chest are ours: their paper tells none.")
    lines += ["", "published settings: preset; datasets; where they come from (prepare-data)"]
    for name, setting in SETTINGS.items():
        targets = f" -> {', '.join(setting.targets)}" if setting.targets else ""
        lines += [
            f"{name}: {setting.preset}",
            f"    {', '.join(setting.sources)}{targets}",
            f"    {setting.downloads}",
        ]
        lines += [f"    --map-labels {setting.label_map}"] if setting.label_map else []
    lines += ["", "downloads for srcsm prepare-data, and where their files are:"]
    lines += [f"{name}: {download.layout}" for name, download in DOWNLOADS.items()]
    return "\n".join(lines)
