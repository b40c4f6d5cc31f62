# SPDX-License-Identifier: Apache-2.0
"""Slices to check lie apart, the least certain first."""

from hypothesis import given
from hypothesis import strategies as st

from SRCSMSegmenterLib.slices_to_check import APART_MM, slices_to_check


def test_neighbours_of_thin_slices_are_left_out():
    assert slices_to_check([400, 401, 402, 390, 376, 424, 0], 0.42) == [400, 376, 424, 0]
    assert slices_to_check([8, 7, 9, 6, 5, 4], 5.0) == [8, 6, 4]
    assert slices_to_check([8, 7, 9, 6, 5, 4], 10.0) == [8, 7, 9, 6, 5]
    assert slices_to_check([8, 7, 9, 6, 5, 4], 10.0, None) == [8, 7, 9, 6, 5, 4]


@given(st.lists(st.integers(0, 900), unique=True), st.floats(0.1, 12))
def test_all_are_apart_and_none_could_be_added(ranked, thickness):
    chosen = slices_to_check(ranked, thickness, None)
    distances = [abs(a - b) * thickness for n, a in enumerate(chosen) for b in chosen[:n]]
    assert min(distances, default=APART_MM) > APART_MM - 1e-3
    for k in set(ranked) - set(chosen):
        assert min(abs(k - other) for other in chosen) * thickness < APART_MM
