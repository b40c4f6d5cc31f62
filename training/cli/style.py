# SPDX-License-Identifier: Apache-2.0
"""``srcsm style``: prepare, phantom, base, tune, control, swap, check, and run for all of them."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import SRCSMError

from . import arguments as options
from .console import INTERRUPTED, is_first_process, progress_display, say
from .outputs import make_folder
from .runs import report_memory_errors
from .style_chain import HelpConfig, next_command, run_chain
from .style_stages import STAGES, Call

if TYPE_CHECKING:
    from ..style.config import StyleConfig

DEFAULT_BASE = "Nihirc/Prompt2MedImage"
SLICES = {"type": Path, "metavar": "SLICES", "help": "folder of slices"}


def add(commands: options.Commands) -> None:
    """Add the command, its stages and their options."""
    summary = "restyle training slices by diffusion, steered by their masks"
    actions = options.add_actions(commands, "style", summary, "stage")
    _add_slices(actions)
    _add_networks(actions)
    _add_pictures(actions)
    _add_chain(actions)


def _add_slices(actions: options.Commands) -> None:
    parser = _add_stage(
        actions,
        "prepare",
        "slice an nnU-Net raw dataset, with masks",
        "  srcsm style prepare --data Dataset101_AbdomenCT --out slices/ct\n"
        "  srcsm style prepare --data Dataset201_HeartBSSFP --out slices/heart \\\n"
        "      --set prompts=heart prepare.style=bssfp",
    )
    options.add_dataset(parser)

    _add_stage(
        actions,
        "phantom",
        "make phantom slices in several modalities, to train a small base on",
        "  srcsm style phantom --config training/configs/style_tiny.yaml --out slices/phantom",
    )


def _add_networks(actions: options.Commands) -> None:
    parser = _add_stage(
        actions,
        "base",
        "train a small base model of your own",
        "  srcsm style base --config training/configs/style_tiny.yaml --out bases/tiny\n"
        "  srcsm style base --config training/configs/style_tiny.yaml \\\n"
        "      --slices slices/phantom slices/ct --out bases/tiny",
    )
    options.add_device(parser)
    parser.add_argument(
        "--slices",
        nargs="+",
        type=Path,
        metavar="SLICES",
        help="folders of slices (default: phantoms alone, which are made in OUT/phantom)",
    )

    parser = _add_stage(
        actions,
        "tune",
        "teach the base's U-Net the style of the source's slices",
        "  srcsm style tune --slices slices/ct --base stable-diffusion-folder --out runs/tuned\n"
        "  srcsm style tune --slices slices/ct --download --out runs/tuned \\\n"
        "      --set tune.lora=16 tune.learning_rate=1e-4\n"
        "  accelerate launch --num_processes 4 -m srcsm_training style tune --slices slices/ct ...",
    )
    _add_base(parser)

    parser = _add_stage(
        actions,
        "control",
        "train a ControlNet on the tuned U-Net, conditioned on the masks",
        "  srcsm style control --slices slices/ct --tuned runs/tuned --out runs/control",
    )
    _add_base(parser)
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="RUN",
        help="run of style tune (default: the base's own U-Net; for the ablation)",
    )


def _add_pictures(actions: options.Commands) -> None:
    parser = _add_stage(
        actions,
        "swap",
        "draw the slices in other styles, with the original U-Net",
        "  srcsm style swap --slices slices/ct --control runs/control\n"
        "  srcsm style swap --slices slices/ct --control runs/control --out restyled \\\n"
        "      --set swap.styles=[t1,t2] swap.per_slice=0",
        out_default="SLICES/styled/PROMPTS",
    )
    _add_base(parser)
    parser.add_argument(
        "--control", type=Path, required=True, metavar="RUN", help="run of style control"
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="RUN",
        help="draw with the tuned U-Net instead; for the ablation",
    )

    parser = _add_stage(
        actions,
        "check",
        "measure whether the style moved and the anatomy stayed, and reject bad slices",
        "  srcsm style check --slices slices/ct/styled/abdomen\n"
        "  srcsm style check --slices slices/ct/styled/abdomen --model runs/ct/model \\\n"
        "      --set check.moved=0.1 check.edges=0.6 check.dice=0.3",
        out_default="SLICES",
    )
    options.add_device(parser)
    parser.add_argument(
        "--slices", type=Path, required=True, metavar="SLICES", help="folder of restyled slices"
    )
    options.add_model(parser, None, " that labels the pictures: its Dice is measured too")


def _add_chain(actions: options.Commands) -> None:
    parser = _add_stage(
        actions,
        "run",
        "run all stages from prepare to check, with a small base of your own unless one is given",
        "  srcsm style run --config training/configs/style_tiny.yaml \\\n"
        "      --data Dataset101_AbdomenCT --out runs/style\n"
        "  srcsm style run --data Dataset101_AbdomenCT --base stable-diffusion-folder \\\n"
        "      --out runs/style",
    )
    options.add_dataset(parser)
    options.add_device(parser)
    _add_base_name(parser, None, "a small one is trained on phantoms and on the slices")


def _add_stage(
    actions: options.Commands, name: str, summary: str, examples: str, out_default: str = ""
) -> argparse.ArgumentParser:
    """Add a stage with the options of every stage: configuration, output and time limit."""
    parser = options.add_command(
        actions,
        f"style {name}",
        summary,
        "One configuration serves all stages; each reads its own section. Ctrl-C stops cleanly;\n"
        "the results so far are kept, and the same command resumes after any stop.",
        examples,
    )
    options.add_help_config(parser, HelpConfig)
    options.add_configuration(
        parser, "the configuration", "single values of it, such as size=256 tune.steps=2000"
    )
    shown = f" (default: {out_default})" if out_default else ""
    parser.add_argument(
        "--out",
        type=Path,
        required=not out_default,
        metavar="FOLDER",
        help=f"folder for the stage's results{shown}",
    )
    options.add_max_minutes(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration and, for base, tune, control and swap, the time and memory",
    )
    return parser


def _add_base(parser: argparse.ArgumentParser) -> None:
    """Add device, base and slices, for the stages that work on a base with diffusion."""
    options.add_device(parser)
    _add_base_name(parser, DEFAULT_BASE, DEFAULT_BASE)
    parser.add_argument("--slices", required=True, **SLICES)


def _add_base_name(parser: argparse.ArgumentParser, default: str | None, told: str) -> None:
    """Add --base and --download."""
    parser.add_argument(
        "--base",
        default=default,
        metavar="NAME_OR_FOLDER",
        help="a base of Stable Diffusion 1.x's architecture in diffusers format, a folder or a "
        f"name on the Hugging Face hub (default: {told})",
    )
    parser.add_argument(
        "--download", action="store_true", help="download it from the hub if it is not here"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run or resume a stage; return 0 also after --max-minutes, 130 after Ctrl-C."""
    from ..engine.config import as_yaml, configured
    from ..style.config import StyleConfig

    config = configured(StyleConfig(), arguments.config, arguments.set)
    if arguments.dry_run:
        print(as_yaml(config))
        if arguments.action in MEASURED:
            _estimate(arguments, config)
        return 0
    if arguments.action == "run":
        return run_chain(arguments, config, run_stage)
    code, out = run_stage(arguments, config)
    if out and is_first_process():
        print(out)
        say(next_command(arguments, out))
    return code


def run_stage(arguments: argparse.Namespace, config: "StyleConfig") -> tuple[int, Path | None]:
    """Run or resume a stage.

    Returns:
        The exit code, and the folder of the result; None if the stage was stopped.
    """
    from ..engine.config import write_yaml
    from ..engine.limits import Limits
    from ..engine.stopping import stop_on_signal

    out = arguments.out or arguments.slices
    if arguments.action == "swap" and not arguments.out:
        out = arguments.slices / "styled" / Path(config.prompts).stem
    if arguments.action != "check" or arguments.out:
        make_folder(out)
    display = progress_display(arguments.action)
    with stop_on_signal() as stop_requested, display as show, report_memory_errors():
        if is_first_process() and arguments.action not in ("prepare", "check"):
            write_yaml(out / "config.yaml", config)
        limits = Limits(arguments.max_minutes, stop_requested, say)
        result = STAGES[arguments.action](Call(arguments, config, out, show, limits))
    if result.finished:
        return 0, out
    if is_first_process():
        why = "Stopped" if stop_requested() else "Stopped by --max-minutes"
        say(
            f"{why} at {result.done} of {result.total}; the results so far are kept, and the same "
            "command resumes."
        )
    return INTERRUPTED if stop_requested() else 0, None


MEASURED = ("base", "tune", "control", "swap")
"""Stages that take long."""


def _estimate(arguments: argparse.Namespace, config: "StyleConfig") -> None:
    """Measure some steps of a stage and print what it takes, or say why that is impossible."""
    from ..engine.estimate import WARM_UP, measure
    from ..engine.limits import Limits

    def estimate(config: "StyleConfig", what: str, steps: int = 0, warm_up: int = WARM_UP) -> None:
        totals = [steps]

        def stage(out: Path, done: Callable[[int], None]) -> None:
            def show(step: int, total: int, note: str) -> None:
                totals.append(total)
                done(step)

            STAGES[arguments.action](Call(arguments, config, out, show, Limits(say=say)))

        with report_memory_errors():
            measured = measure(stage, warm_up)
        for line in measured.lines(steps or totals[-1], what):
            print(f"# {line}")

    say("Measuring some steps ...")
    try:
        if arguments.action != "base":
            estimate(config, arguments.action)
            return
        first, second = config.base.autoencoder, config.base.denoiser
        estimate(config, "autoencoder", first.steps)
        short = replace(config, base=replace(config.base, autoencoder=replace(first, steps=1)))
        estimate(short, "denoiser", second.steps, WARM_UP + 1)
    except SRCSMError as error:
        say(f"The time cannot be estimated: {error}")
