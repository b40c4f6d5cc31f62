# SPDX-License-Identifier: Apache-2.0
"""``srcsm style``: prepare, phantom, base, tune, control, swap, check."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import ConfigError, SRCSMError

from . import arguments as options
from .console import INTERRUPTED, is_first_process, progress_display, say
from .outputs import make_folder
from .runs import report_memory_errors, silence_libraries

if TYPE_CHECKING:
    from ..engine.limits import Limits
    from ..engine.progress import Progress
    from ..style.config import StyleConfig
    from ..style.slices import StageResult

SLICES = {"type": Path, "metavar": "SLICES", "help": "folder of slices"}


@dataclass(frozen=True)
class Call:
    """One call of a stage.

    Attributes:
        arguments: options of the command line.
        out: folder for the stage's results.
        show: called as show(done, total, note).
    """

    arguments: argparse.Namespace
    config: "StyleConfig"
    out: Path
    show: Callable[[int, int, str], None]
    limits: "Limits"

    def reporting(self, steps: int) -> "Limits":
        """Return the limits of a training of `steps` steps, which shows its progress."""

        def report(state: "Progress") -> None:
            self.show(state.step, steps, f"loss {state.loss:.4f}")

        return replace(self.limits, report=report)


def add(commands: options.Commands) -> None:
    """Add the command, its stages and their options."""
    summary = "restyle training slices by diffusion, steered by their masks"
    actions = options.add_actions(commands, "style", summary, "stage")
    _add_slices(actions)
    _add_networks(actions)
    _add_pictures(actions)


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
        "  srcsm style base --config training/configs/style_tiny.yaml \\\n"
        "      --slices slices/phantom slices/ct --out bases/tiny",
    )
    options.add_device(parser)
    parser.add_argument("--slices", nargs="+", required=True, **SLICES)

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
    options.add_model(parser, None)


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
    options.add_help_config(parser, _HelpConfig)
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


class _HelpConfig(argparse.Action):
    """Explanation of the keys of the configuration, which needs none of the other options."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str,
        option_string: str | None = None,
    ) -> None:
        """Print the explanation and exit."""
        from ..engine.keys import describe
        from ..style.config import StyleConfig

        try:
            print(describe(StyleConfig(), values))
        except ConfigError as error:
            parser.error(str(error))
        parser.exit()


def _add_base(parser: argparse.ArgumentParser) -> None:
    """Add device, base and slices, for the stages that work on a base with diffusion."""
    options.add_device(parser)
    parser.add_argument(
        "--base",
        default="Nihirc/Prompt2MedImage",
        metavar="NAME_OR_FOLDER",
        help="a base of Stable Diffusion 1.x's architecture in diffusers format, a folder or a "
        "name on the Hugging Face hub (default: Nihirc/Prompt2MedImage)",
    )
    parser.add_argument(
        "--download", action="store_true", help="download it from the hub if it is not here"
    )
    parser.add_argument("--slices", required=True, **SLICES)


def run(arguments: argparse.Namespace) -> int:
    """Run or resume a stage; return 0 also after --max-minutes, 130 after Ctrl-C."""
    from ..engine.config import as_yaml, configured, write_yaml
    from ..engine.limits import Limits
    from ..engine.stopping import stop_on_signal
    from ..style.config import StyleConfig

    config = configured(StyleConfig(), arguments.config, arguments.set)
    if arguments.dry_run:
        print(as_yaml(config))
        if arguments.action in MEASURED:
            _estimate(arguments, config)
        return 0
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
    if result.finished and is_first_process():
        print(out)
        say(NEXT[arguments.action].format(out=out))
    elif is_first_process():
        why = "Stopped" if stop_requested() else "Stopped by --max-minutes"
        say(
            f"{why} at {result.done} of {result.total}; the results so far are kept, and the same "
            "command resumes."
        )
    return INTERRUPTED if stop_requested() and not result.finished else 0


def prepare(call: Call) -> "StageResult":
    """Slice a dataset."""
    from ..style.prepare import prepare

    return prepare(
        call.arguments.data, call.out, call.config, progress=call.show, limits=call.limits
    )


def phantom(call: Call) -> "StageResult":
    """Make slices of phantoms."""
    from ..style.phantom_slices import write_phantom_slices

    return write_phantom_slices(call.out, call.config, progress=call.show, limits=call.limits)


def base(call: Call) -> "StageResult":
    """Train a small base."""
    from ..style.small import train_base

    silence_libraries()
    recipe = call.config.base
    total = recipe.autoencoder.steps + recipe.denoiser.steps
    return train_base(
        call.arguments.slices,
        call.out,
        call.config,
        device=call.arguments.device,
        limits=call.reporting(total),
    )


def tune(call: Call) -> "StageResult":
    """Tune a base's U-Net."""
    from ..style.tune import tune

    silence_libraries()
    return tune(
        call.arguments.slices,
        call.arguments.base,
        call.out,
        call.config,
        device=call.arguments.device,
        download=call.arguments.download,
        limits=call.reporting(call.config.tune.steps),
    )


def control(call: Call) -> "StageResult":
    """Train a ControlNet."""
    from ..style.control import train_control

    silence_libraries()
    return train_control(
        call.arguments.slices,
        call.arguments.base,
        call.out,
        call.config,
        tuned=call.arguments.tuned,
        device=call.arguments.device,
        download=call.arguments.download,
        limits=call.reporting(call.config.control.steps),
    )


def swap(call: Call) -> "StageResult":
    """Draw slices in other styles."""
    from ..style.swap import SwapModels, swap

    silence_libraries()
    given = call.arguments
    return swap(
        given.slices,
        SwapModels(given.base, given.control, given.tuned, given.download),
        call.out,
        call.config,
        device=given.device,
        progress=lambda done, total: call.show(done, total, "pictures"),
        limits=call.limits,
    )


def check(call: Call) -> "StageResult":
    """Check restyled slices."""
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model

    from ..style.check import check

    model = call.arguments.model
    return check(
        call.arguments.slices,
        call.config,
        out=call.out,
        network=load_bundle(find_model(model)) if model else None,
        device=call.arguments.device,
        progress=call.show,
        limits=call.limits,
    )


STAGES: dict[str, Callable[[Call], "StageResult"]] = {
    "prepare": prepare,
    "phantom": phantom,
    "base": base,
    "tune": tune,
    "control": control,
    "swap": swap,
    "check": check,
}

NEXT = {
    "prepare": "Next: srcsm style tune --slices {out} --out RUN",
    "phantom": "Next: srcsm style base --slices {out} --out BASE",
    "base": "Next: srcsm style tune --slices SLICES --base {out} --out RUN",
    "tune": "Next: srcsm style control --slices SLICES --tuned {out} --out RUN",
    "control": "Next: srcsm style swap --slices SLICES --control {out}",
    "swap": "Next: srcsm style check --slices {out}",
    "check": "Next: look at {out}/contact_sheet.png, then srcsm train --preset icm ... "
    "--set pairs.styled=[SLICES]",
}
"""What to do after each stage."""

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
