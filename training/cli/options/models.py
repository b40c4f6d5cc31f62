# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm models``."""

from pathlib import Path

from .. import arguments as common


def add(commands: common.Commands) -> None:
    summary = "list, verify and describe trained networks and SAMs"
    actions = common.add_actions(commands, "models", summary)

    parser = common.add_command(
        actions,
        "models list",
        "list the shipped networks and those in other folders",
        examples="  srcsm models list\n  srcsm models list runs/* --json",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    common.add_json(parser)

    parser = common.add_command(
        actions,
        "models verify",
        "check every file of networks against their SHA-256",
        "Exits with 4 where a file is missing, altered or does not belong there.",
        "  srcsm models verify\n  srcsm models verify abdomen-ct runs/ct/model",
    )
    parser.add_argument("models", nargs="*", metavar="NAME_OR_FOLDER", help="default: the shipped")
    common.add_json(parser)

    parser = common.add_command(
        actions,
        "models describe",
        "print the model card",
        examples="  srcsm models describe abdomen-ct\n  srcsm models describe runs/ct/model --json",
    )
    parser.add_argument("model", metavar="NAME_OR_FOLDER")
    common.add_json(parser)
