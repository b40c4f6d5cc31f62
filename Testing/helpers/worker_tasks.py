# SPDX-License-Identifier: Apache-2.0
"""Tasks that do to a worker what users, libraries and fate do."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from SRCSMSegmenterLib.errors import Cancelled, VolumeError


def echo(parameters, arrays, context):
    """The parameters back."""
    return parameters, {}


def double(parameters, arrays, context):
    """Twice of every array."""
    return {"pid": os.getpid()}, {name: array * 2 for name, array in arrays.items()}


def where(parameters, arrays, context):
    """What the process is like."""
    return {
        "pid": os.getpid(),
        "file": __file__,
        "torch": "torch" in sys.modules,
        "environment": {k: v for k, v in os.environ.items() if k.startswith("SRCSM_TEST")},
    }, {}


def have_child(parameters, arrays, context):
    """Starts a process that would live on."""
    return {"child": subprocess.Popen(["sleep", "600"]).pid}, {}


def obedient(parameters, arrays, context):
    """Goes on until it is cancelled."""
    for step in range(10_000):
        if context.cancelled():
            raise Cancelled("Stopped.")
        context.progress("waiting", step / 10_000)
        time.sleep(0.005)
    return {}, {}


def deaf(parameters, arrays, context):
    """Goes on whatever happens, as C code does."""
    context.progress("deaf", 0.5)
    time.sleep(parameters.get("seconds", 60))
    return {}, {}


def busy(parameters, arrays, context):
    """Goes on whatever happens, and leaves little time to other threads."""
    context.progress("busy", 0.5)
    while True:
        sum(range(100_000))


def die(parameters, arrays, context):
    """Ends the process: "exit", "kill" or "segfault"."""
    print("last words")
    context.progress("dying", 0.5)
    match parameters["how"]:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)


def fail(parameters, arrays, context):
    """Fails with an error of the kind."""
    match parameters["kind"]:
        case "volume":
            raise VolumeError("The volume is half full.")
        case "memory":
            raise MemoryError
        case "package":
            import no_such_package  # noqa: F401
        case "file":
            open("/no/such/file").close()
        case "exit":
            sys.exit("a task that ends the program")
        case "unexpected":
            raise RuntimeError("nobody thought of this")
        case "reply":
            return {"no JSON": object()}, {}
        case "array":
            return {}, {"objects": np.array([{}])}
    raise AssertionError(parameters)


def chatter(parameters, arrays, context):
    """Prints more than any pipe holds, to both outputs, in long lines and short ones."""
    for number in range(300):
        print("o" * 997, number)
        print("e" * 997, number, file=sys.stderr)
    os.write(1, b"x" * 1_000_000 + b"\xff\xfe\r half \xc3")
    os.write(2, b"\xa9 done\n")
    print('{"id": 1, "reply": {"forged": true}}')
    context.log("not ASCII: é 肝")
    return {"read": sys.stdin.read()}, {}


def count(parameters, arrays, context):
    """How often a model was loaded."""

    def load():
        loads.append(1)
        return object()

    context.models.get(parameters["model"], load)
    return {"loads": len(loads)}, {}


loads: list[int] = []


def many_steps(parameters, arrays, context):
    """More progress than anyone can read."""
    for step in range(20_000):
        context.progress("half", step / 20_000)
    context.progress("end", 1.0)
    return {}, {}


def large(parameters, arrays, context):
    """An array of that many bytes."""
    context.progress("writing", 0.5)
    return {}, {"large": np.ones(parameters["bytes"], np.uint8)}


def slow_to_write(parameters, arrays, context):
    """An array whose parts take their time on the way to the disk."""

    class Slow(np.ndarray):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    context.progress("writing", 0.9)
    return {}, {"slow": np.broadcast_to(np.ones(5 << 20, np.uint8), (400, 5 << 20)).view(Slow)}


def middle(parameters, arrays, context):
    """One number of a large array, and the memory it took in bytes."""
    array = arrays["image"]
    before = private_memory()
    found = int(array[tuple(n // 2 for n in array.shape)])
    array[0, 0, 0] = 9  # a task may write into what it was given
    return {"found": found, "grown": private_memory() - before}, {}


def private_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def segment_swapped(parameters, arrays, context):
    """As "segment", with labels 1 and 2 swapped, as if a SAM had refined them."""
    from SRCSMSegmenterLib.worker.tasks import segment

    reply, outputs = segment(parameters, arrays, context)
    outputs["labels"] = np.array([0, 2, 1], np.uint8)[outputs["labels"]]
    organs = [{"kept": {"3": "no box"}}, {"kept": {}}]
    return reply | {"refinement": {"sam": {"name": "played"}, "organs": organs}}, outputs


TASKS = {
    function.__name__: function
    for function in (
        echo,
        double,
        where,
        have_child,
        obedient,
        deaf,
        busy,
        die,
        fail,
        chatter,
        count,
        many_steps,
        large,
        slow_to_write,
        middle,
        segment_swapped,
    )
}
