# SPDX-License-Identifier: Apache-2.0
"""The command line, ``srcsm``: its commands, exit codes and error messages.

Each command is a module: `add` adds its options, `run` runs it. Modules import what they need in
`run`, so that help is instant.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from SRCSMSegmenterLib.errors import ConfigError

from ..engine.allocator import keep_freed_memory
from .console import INTERRUPTED
from .failures import exit_code, sentence
from .terminal import lenient_output

COMMANDS = (
    "segment", "boxes", "refine", "prepare-data", "pack-data", "train", "train-sam", "evaluate",
    "match", "models", "phantom", "demo", "style", "worker",
)  # fmt: skip
"""The commands, in the order of the help."""

HELP = """\
Train a segmentation network on one modality, use it on another.

exit codes:
  0    done (a training that --max-minutes stopped as well)
  1    unexpected error; run again with --debug and report it
  2    wrong usage or configuration
  3    a scan, a dataset or boxes cannot be used
  4    a model is unknown, incomplete or altered
  5    the device is unknown, absent or out of memory
  6    results cannot be written, or a training or evaluation cannot go on
  130  interrupted or cancelled

examples:
  srcsm demo
  srcsm segment mr.nii.gz -o organs.seg.nrrd
  srcsm segment mr.nii.gz -o organs.seg.nrrd --refine
  srcsm train --data Dataset101_AbdomenCT --preset abdomen-fast --out runs/ct
  srcsm evaluate --model runs/ct/model --data Dataset102_AbdomenMR --out runs/ct/on-mr

Research use only, not for diagnosis.
"""

RESULTS_LOST = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (`HELP` lists them)."""
    argv = sys.argv[1:] if argv is None else argv
    with lenient_output():
        parser = make_parser()
        if "" in argv:  # as a path it would be the current folder
            parser.error("an argument is empty, perhaps as a variable of the shell is not set")
        code = _run(parser.parse_args(argv))
        sys.stdout.flush()
        if lost := sys.stdout.lost:
            print(f"srcsm: error: Printing failed ({lost.strerror}).", file=sys.stderr)
        return code or (RESULTS_LOST if lost else 0)


def _run(arguments: argparse.Namespace) -> int:
    try:
        _require_current_folder()
        if arguments.command != "worker":  # which idles between jobs
            keep_freed_memory()
        return command_module(arguments.command).run(arguments)
    except KeyboardInterrupt:
        print("srcsm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"srcsm: error: {sentence(error)}", file=sys.stderr)
        return exit_code(error)


def _require_current_folder() -> None:
    """Check that the current folder exists, without which libraries end the process.

    Raises:
        ConfigError: it was removed.
    """
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("The current folder was removed; change to another one.") from None


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands and their options."""
    parser = argparse.ArgumentParser(
        prog="srcsm", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"srcsm {version('srcsm')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command_module(name).add(commands)
    return parser


def command_module(command: str) -> ModuleType:
    """Import the module of a command."""
    return import_module(f".{command.replace('-', '_')}", __package__)
