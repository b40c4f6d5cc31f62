# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm models``."""

from pathlib import Path

from .. import arguments


def add(commands: arguments.Commands) -> None:
    summary = "list, verify and describe trained networks and SAMs"
    actions = arguments.add_actions(commands, "models", summary)

    parser = arguments.add_command(
        actions,
        "models list",
        "list the shipped networks and those in other folders",
        examples="  srcsm models list\n  srcsm models list runs/* --json",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    arguments.add_json(parser)

    parser = arguments.add_command(
        actions,
        "models verify",
        "check every file of networks against their SHA-256",
        "Exits with 4 where a file is missing, altered or does not belong there.",
        "  srcsm models verify\n  srcsm models verify abdomen-ct runs/ct/model",
    )
    parser.add_argument("models", nargs="*", metavar="NAME_OR_FOLDER", help="default: the shipped")
    arguments.add_json(parser)

    parser = arguments.add_command(
        actions,
        "models describe",
        "print the model card",
        examples="  srcsm models describe abdomen-ct\n  srcsm models describe runs/ct/model --json",
    )
    parser.add_argument("model", metavar="NAME_OR_FOLDER")
    arguments.add_json(parser)
