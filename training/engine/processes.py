# SPDX-License-Identifier: Apache-2.0
"""Start of the processes that `accelerate launch` leaves to others.

On CPUs it starts one process, whatever --num_processes says, and expects MPI to start the others.
Here the first process starts them.
"""

import atexit
import os
import socket
import subprocess
import sys
from argparse import Namespace

from SRCSMSegmenterLib.errors import ConfigError

RANKS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)
"""Variables by which torchrun, accelerate on GPUs, or MPI number the processes."""

PATIENCE = 60.0
"""Seconds that the first process waits at its end for the others to end."""


def start_other_processes() -> None:
    """Start the other processes of this machine, if `accelerate launch` on CPUs did not.

    This process becomes the first one; the others run its command again, and all find each other by
    the environment.

    Raises:
        ConfigError: the number of processes cannot be found out.
    """
    alone = not any(name in os.environ for name in RANKS)
    on_cpus = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if not (alone and on_cpus and "MASTER_PORT" in os.environ):  # set for several processes alone
        return
    launch = _launch_arguments()
    total, machines = launch.num_processes, launch.num_machines or 1
    here = total // machines
    if machines == 1 and launch.main_process_port is None:
        os.environ["MASTER_PORT"] = str(_free_port())
    first = (launch.machine_rank or 0) * here

    def numbered(local: int) -> dict[str, str]:
        return {
            "RANK": str(first + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(total),
            "LOCAL_WORLD_SIZE": str(here),
        }

    others = [
        subprocess.Popen(sys.orig_argv, env={**os.environ, **numbered(local)})
        for local in range(1, here)
    ]
    os.environ |= numbered(0)
    atexit.register(_end, others)


def _launch_arguments() -> Namespace:
    """Return the options that `accelerate launch` was given, by its command or its configuration.

    Raises:
        ConfigError: they cannot be found.
    """
    import psutil  # when needed: a training of one process does without
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    for parent in psutil.Process().parents():
        given = _options_of_launch(parent.cmdline())
        if given is None:
            continue
        arguments = launch_command_parser().parse_args(given)
        if arguments.num_processes is None:
            defaults = load_config_from_file(arguments.config_file)
            for name in ("num_processes", "num_machines", "machine_rank", "main_process_port"):
                setattr(arguments, name, getattr(defaults, name, None))
        if arguments.num_processes:
            return arguments
    raise ConfigError(
        "accelerate launch was asked for several processes on CPUs but started one, and how many "
        "is not known; start them by torchrun --nproc_per_node N training/train.py ..."
    )


def _options_of_launch(command: list[str]) -> list[str] | None:
    """Return what follows `accelerate launch`, or another way to start it; None if it is none."""
    for n, word in enumerate(command):
        by_name = word == "launch" and n and os.path.basename(command[n - 1]) == "accelerate"
        by_module = word == "accelerate.commands.launch" or word.endswith(
            (f"accelerate{os.sep}commands{os.sep}launch.py", "accelerate-launch")
        )
        if by_name or by_module:
            return command[n + 1 :]
    return None


def _free_port() -> int:
    """Find a port that no other training on this machine uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(others: list[subprocess.Popen]) -> None:
    """Wait for the other processes, and end those that do not end by themselves."""
    for process in others:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()
