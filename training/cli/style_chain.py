# SPDX-License-Identifier: Apache-2.0
"""The style stages as a chain: the command after each, and all of them at once."""

import argparse
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SRCSMSegmenterLib.errors import ConfigError

from .console import is_first_process, say

if TYPE_CHECKING:
    from ..style.config import StyleConfig

Stage = tuple[str, dict[str, Any]]
"""Name of a stage, and its options."""


class HelpConfig(argparse.Action):
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


def next_command(arguments: argparse.Namespace, out: Path) -> str:
    """Return a line for the user with the command that comes after a stage, ready to paste.

    Args:
        out: folder of the stage's result.
    """
    shared = ["--config", str(arguments.config)] if arguments.config else []
    shared += ["--set", *arguments.set] if arguments.set else []
    slices = getattr(arguments, "slices", None)
    base = ["--base", str(getattr(arguments, "base", None) or "")]
    base = base if base[1] else []
    runs = out.parent

    def stage(name: str, *words: object) -> str:
        return "Next: " + shlex.join(["srcsm", "style", name, *map(str, words), *shared])

    if arguments.action == "prepare":
        return stage("tune", "--slices", out, "--out", runs / "tuned")
    if arguments.action == "phantom":
        return stage("base", "--slices", out, "--out", runs / "base")
    if arguments.action == "base":
        last = slices[-1] if slices else out / "phantom"
        return stage("tune", "--slices", last, "--base", out, "--out", runs / "tuned")
    if arguments.action == "tune":
        words = ("--slices", slices, *base, "--tuned", out, "--out", runs / "control")
        return stage("control", *words)
    if arguments.action == "control":
        return stage("swap", "--slices", slices, *base, "--control", out)
    if arguments.action == "swap":
        return stage("check", "--slices", out)
    return _training(slices, out)


def run_chain(
    arguments: argparse.Namespace,
    config: "StyleConfig",
    run_stage: Callable[[argparse.Namespace, "StyleConfig"], tuple[int, Path | None]],
) -> int:
    """Run all stages that are not finished yet, each in a folder of its own in --out.

    The base is looked for before anything is computed.

    Args:
        run_stage: see `style.run_stage`.

    Returns:
        The exit code of the last stage that ran.

    Raises:
        BundleError: the base is not here.
    """
    from ..style.base import find_base

    if arguments.base:
        find_base(arguments.base, arguments.download)
    started = time.monotonic()
    styled = arguments.out / "slices"
    for name, given in _stages(arguments, config):
        left = arguments.max_minutes - (time.monotonic() - started) / 60
        if left <= 0:
            say(f"Stopped by --max-minutes before {name}; the same command resumes.")
            return 0
        if is_first_process():
            say(f"{name}:")
        stage = argparse.Namespace(**{**vars(arguments), **given})
        stage.action, stage.max_minutes = name, left
        code, out = run_stage(stage, config)
        if out is None:
            return code
        styled = out
    if is_first_process():
        print(styled)
        say(_training(styled, styled, arguments.data))
    return 0


def _stages(arguments: argparse.Namespace, config: "StyleConfig") -> Iterator[Stage]:
    """Yield the stages and their options; a base that is not given is trained."""
    out, base = arguments.out, arguments.base
    slices = out / "slices"
    yield "prepare", {"out": slices}
    if base is None:
        base = str(out / "base")
        yield "phantom", {"out": out / "phantom"}
        yield "base", {"slices": [out / "phantom", slices], "out": out / "base"}
    shared = {"slices": slices, "base": base}
    yield "tune", {**shared, "out": out / "tuned"}
    yield "control", {**shared, "tuned": out / "tuned", "out": out / "control"}
    styled = slices / "styled" / Path(config.prompts).stem
    yield "swap", {**shared, "control": out / "control", "tuned": None, "out": styled}
    yield "check", {"slices": styled, "model": None, "out": None}


def _training(styled: Path, checked: Path, data: Path | None = None) -> str:
    """Return lines with the command that trains on restyled slices, if any were kept.

    Args:
        checked: folder of the check's results.
        data: folder of the dataset, which goes by its name otherwise.
    """
    from ..segmentation.presets import PRESETS
    from ..style.slices import read_manifest

    slices = read_manifest(styled)
    look = f"Look at {checked / 'contact_sheet.png'}"
    if not slices.kept():
        return f"{look}: no picture was kept to train on; tune and control longer."
    special = f"icm-{styled.name}"
    words = ["srcsm", "train", "--data", str(data or slices.name)]
    words += ["--preset", special if special in PRESETS else "icm"]
    words += ["--out", str(styled.parent / "icm"), "--set", f"pairs.styled=[{styled}]"]
    return f"{look}.\nNext: {shlex.join(words)}"
