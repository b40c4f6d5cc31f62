# SPDX-License-Identifier: Apache-2.0
"""Long computations beside Slicer's main thread, so that its window goes on drawing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Aside(Protocol):
    """A way to run functions that take longer than a frame."""

    def __call__(self, function: Callable[[], T], done: float | None = None) -> T:
        """Run a function and return what it returns.

        Args:
            function: to run, perhaps in another thread: neither MRML nor Qt may be used in it.
            done: the fraction of the whole that is done after it; None if that is unknown.

        Raises:
            Cancelled: the user does not want it any more.
        """


def directly(function: Callable[[], T], done: float | None = None) -> T:
    """Run a function here, as in scripts; see `Aside`."""
    return function()


Waiting = Callable[[str], AbstractContextManager[Aside]]
"""Function that is called with what is going on, in words, and shows it while it takes long."""


@contextmanager
def unshown(text: str) -> Iterator[Aside]:
    """Show nothing, as in scripts; see `Waiting`."""
    yield directly
