# SPDX-License-Identifier: Apache-2.0
"""Work on many items: order, what runs beside what, how many are in memory, and errors."""

import threading

import pytest

from srcsm_training.cli.pipeline import Stages, run_stages


class FatalError(Exception):
    """An error that stops everything."""


def double(written, in_compute=lambda item: None):
    """Stages that double a number; those of `errors` fail."""

    def compute(item, number):
        in_compute(item)
        return number * 2

    def write(item, number):
        written.append(item)
        return number

    return Stages(lambda item: item, compute, write, (FatalError,))


@pytest.mark.parametrize("in_hand", [1, 2, 3, 6])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_item_is_written_once_and_told_in_order(in_hand, count):
    written = []
    told = list(run_stages(range(count), double(written), in_hand))
    assert told == [(n, 2 * n) for n in range(count)]
    assert sorted(written) == list(range(count))


def test_the_next_item_is_read_and_the_last_written_while_one_is_computed():
    # Each waits for the others, so that it hangs, and then fails, if they do not run at once.
    together = threading.Barrier(3, timeout=20)

    def meet(item, among):
        if item == among:
            together.wait()

    def read(item):
        meet(item, 2)

    def compute(item, _):
        meet(item, 1)

    def write(item, _):
        meet(item, 0)
        return item

    told = [item for item, result in run_stages(range(3), Stages(read, compute, write), 3)]
    assert told == [0, 1, 2]


@pytest.mark.parametrize("in_hand", [1, 2, 3, 5])
def test_no_more_items_are_in_memory_than_allowed(in_hand):
    held, most = set(), 0

    def read(item):
        nonlocal most
        held.add(item)
        most = max(most, len(held))

    def write(item, _):
        held.remove(item)

    list(run_stages(range(12), Stages(read, lambda item, _: None, write), in_hand))
    assert most <= in_hand


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_item_that_fails_does_not_stop_the_rest(stage):
    def fail(here, item):
        if here == stage and item == 1:
            raise ValueError(stage)
        return item

    stages = Stages(
        lambda item: fail("read", item),
        lambda item, _: fail("compute", item),
        lambda item, _: fail("write", item),
    )
    results = [result for _, result in run_stages(range(4), stages, 3)]
    assert [results[n] for n in (0, 2, 3)] == [0, 2, 3]
    assert isinstance(results[1], ValueError)
    assert str(results[1]) == stage


@pytest.mark.parametrize("error", [FatalError, KeyboardInterrupt])
def test_what_was_computed_is_written_even_if_the_next_one_stops_everything(error):
    def stop(item):
        if item == 2:
            raise error

    written = []
    with pytest.raises(error):
        list(run_stages(range(6), double(written, stop), 3))
    assert sorted(written) == [0, 1]


def test_a_fatal_error_of_a_writer_stops_everything():
    def write(item, _):
        raise FatalError

    stages = Stages(lambda item: item, lambda item, number: number, write, (FatalError,))
    with pytest.raises(FatalError):
        list(run_stages(range(6), stages, 1))


def test_what_all_items_need_is_prepared_once_while_the_first_is_read():
    together, order = threading.Barrier(2, timeout=20), []

    def read(item):
        if item == 0:
            together.wait()

    def prepare():
        together.wait()
        order.append("prepared")

    stages = Stages(read, lambda item, _: order.append(item), lambda item, _: None, prepare=prepare)
    list(run_stages(range(3), stages, 1))
    assert order == ["prepared", 0, 1, 2]
