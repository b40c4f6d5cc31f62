# SPDX-License-Identifier: Apache-2.0
"""Pictures: which way round a slice is shown, and the outlines of its labels."""

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from srcsm_training import plots


def test_slices_show_the_right_on_the_left_and_anterior_up():
    axes = Figure().subplots()
    image = np.zeros((6, 8))
    image[5, 1] = 1  # anterior (J up), to the left of the patient (small I)
    plots.draw_slice(axes, image, None, "title", aspect=2.0)
    shown = axes.images[0]
    assert shown.origin == "upper"
    assert np.argwhere(shown.get_array() == 1).tolist() == [[0, 6]]
    assert axes.get_aspect() == 2.0


def test_outlines_have_the_colour_of_their_label_and_the_style_of_their_map():
    axes = Figure().subplots()
    truth, prediction = np.zeros((6, 8), int), np.zeros((6, 8), int)
    truth[1:3, 1:3], truth[4:, 5:], prediction[4:, 4:] = 1, 2, 2
    plots.draw_outlined(
        axes, np.zeros((6, 8)), {"solid": truth, "dashed": prediction}, limits=(0, 255)
    )
    outlines = [(to_hex(c.get_edgecolor()[0]), c.get_linestyle()[0][1]) for c in axes.collections]
    assert [colour for colour, _ in outlines] == [plots.COLOURS[n] for n in (0, 1, 1)]
    assert [dashes is None for _, dashes in outlines] == [True, True, False]
    assert axes.images[0].get_clim() == (0, 255)


def test_a_label_that_fills_the_image_has_no_outline():
    axes = Figure().subplots()
    plots.draw_outlined(axes, np.zeros((6, 8)), {"solid": np.ones((6, 8), int)})
    assert not axes.collections
