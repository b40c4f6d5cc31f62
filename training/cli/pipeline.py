# SPDX-License-Identifier: Apache-2.0
"""Work on many scans: the next ones are read and the last ones written while one is computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stages(Generic[Item, Read, Computed, Result]):
    """The work on each item; `read` and `write` run in other threads, the rest in this one.

    Attributes:
        fatal: errors that stop the work on all items.
        prepare: called once, while the first items are read and before any is computed.
    """

    read: Callable[[Item], Read]
    compute: Callable[[Item, Read], Computed]
    write: Callable[[Item, Computed], Result]
    fatal: tuple[type[Exception], ...] = ()
    prepare: Callable[[], object] = lambda: None


def run_stages(
    items: Iterable[Item], stages: Stages[Item, Read, Computed, Result], in_hand: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Read, compute and write items; yield each with its result or its error, in their order.

    If it is stopped, by a fatal error for example, what was computed is still written.

    Args:
        in_hand: items that may be in memory at a time; 1: one after another.
    """
    threads = max(1, in_hand - 2)
    waiting = deque(items)
    read: deque[tuple[Item, Future[Read]]] = deque()
    written: deque[tuple[Item, Future[Result]]] = deque()
    prepared = False
    with ThreadPoolExecutor(threads) as writers, ThreadPoolExecutor(threads) as readers:
        try:
            while waiting or read or written:
                while waiting and len(read) + len(written) < in_hand:
                    item = waiting.popleft()
                    read.append((item, readers.submit(stages.read, item)))
                if not prepared:
                    stages.prepare()
                    prepared = True
                if read:
                    item, future = read.popleft()
                    written.append((item, _computed(item, future, stages, writers)))
                    del future  # and with it the hold on what was read
                while written and (not read or written[0][1].done()):
                    item, result = written.popleft()
                    yield item, _outcome(result, stages.fatal)
                    del result
                    if waiting:
                        break
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


def _computed(
    item: Item,
    read: "Future[Read]",
    stages: Stages[Item, Read, Computed, Result],
    writers: ThreadPoolExecutor,
) -> "Future[Result]":
    """Compute an item and have it written; an error that is not fatal becomes its result."""
    try:
        return writers.submit(stages.write, item, stages.compute(item, read.result()))
    except stages.fatal:
        raise
    except Exception as error:
        failed: Future[Result] = Future()
        failed.set_exception(error)
        return failed


def _outcome(result: "Future[Result]", fatal: tuple[type[Exception], ...]) -> Result | Exception:
    error = result.exception()
    if error is None:
        return result.result()
    if isinstance(error, fatal) or not isinstance(error, Exception):
        raise error
    return error
