# SPDX-License-Identifier: Apache-2.0
"""Clean stops of a training on Ctrl-C or SIGTERM."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True once SIGINT or SIGTERM has requested a stop.

    The first signal requests the stop; the second interrupts, as it does without this context.
    """
    requested = False
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, frame: object) -> None:
        nonlocal requested
        requested = True
        restore()
        # print is not safe here: the signal may have come in the middle of another print.
        os.write(2, b"\nStopping after this step, with a checkpoint; again to stop at once.\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        restore()
