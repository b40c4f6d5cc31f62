# SPDX-License-Identifier: Apache-2.0
"""The demonstration's overview picture."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from srcsm_training.demo import Panel, overview
from srcsm_training.pictures import COLOURS


def test_the_overview_has_every_panel_and_every_organs_colour(tmp_path):
    rng = np.random.default_rng(5)
    labels = np.zeros((40, 56), np.uint8)
    for label, j in enumerate((3, 12, 21, 30), start=1):
        labels[j : j + 6, 8:20] = label
    titles = ("CT, truth", "MR, truth", "plain", "+ SRC", "+ SRC and SM")
    rows = [[Panel(title, rng.normal(size=labels.shape), labels) for title in titles]] * 2
    path = tmp_path / "new" / "overview.png"
    overview(path, rows, ("liver", "right kidney", "left kidney", "spleen"))

    picture = imread(path)[..., :3]
    assert picture.shape[1] > 900
    # The contours of both rows and the legend's patch: pixels of each colour left and right.
    for colour in COLOURS[:4]:
        found = np.abs(picture - to_rgb(colour)).max(axis=2) < 0.02
        columns = np.flatnonzero(found.any(axis=0)) / picture.shape[1]
        assert columns.min() < 0.2
        assert columns.max() > 0.8
    assert [path.name for path in path.parent.iterdir()] == ["overview.png"]
