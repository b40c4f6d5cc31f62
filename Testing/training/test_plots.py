# SPDX-License-Identifier: Apache-2.0
"""Pictures of slices."""

import numpy as np

from srcsm_training import plots


def test_pictures_show_the_right_on_the_left_and_anterior_up():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    image = np.zeros((6, 8))
    image[5, 1] = 1  # anterior (J up), to the left of the patient (small I)
    plots.draw_slice(axes, image, None, "title", aspect=2.0)
    shown = axes.images[0]
    assert shown.origin == "lower"
    assert np.argwhere(shown.get_array() == 1).tolist() == [[5, 6]]
    assert axes.get_aspect() == 2.0
