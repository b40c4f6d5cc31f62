# SPDX-License-Identifier: Apache-2.0
"""Previews: slices the right way up, and renderings with the organs in their places."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from srcsm_training.evaluation import preview
from srcsm_training.plots import outline_colour
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.terminology import segment_for

LIVER, SPLEEN = (to_rgb(outline_colour(label)) for label in (1, 2))

PATIENT = np.diag((4.0, 4.0, 4.0, 1.0))
TURNED = np.array([[0, 0, -4, 60], [0, 4, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1.0]])


def organs(affine):
    """A liver on the patient's right, a spleen on the left, behind and above; both are blocks."""
    size = (16, 16, 16)
    geometry = Geometry(size, affine)
    k, j, i = np.indices(size)
    right, anterior, superior = np.moveaxis(geometry.to_ras(np.stack([i, j, k], -1)), -1, 0)
    labels = np.zeros(size, np.uint8)
    labels[(abs(right - 46) < 10) & (abs(anterior - 40) < 10) & (abs(superior - 20) < 10)] = 1
    labels[(abs(right - 14) < 10) & (abs(anterior - 20) < 10) & (abs(superior - 40) < 10)] = 2
    return Volume(labels, geometry)


def hue(pixel):
    return pixel / np.linalg.norm(pixel, axis=-1, keepdims=True)


def place_of(picture, colour):
    """Mean (row, column) of the pixels of a colour, however bright, in parts of the picture."""
    there = (np.abs(hue(picture) - hue(np.array(colour))) < 0.02).all(axis=-1)
    assert there.any()
    return np.argwhere(there).mean(axis=0) / picture.shape[:2]


@pytest.mark.parametrize("affine", [PATIENT, TURNED], ids=["patient", "turned"])
def test_organs_are_rendered_in_their_places(affine):
    front = preview.render(organs(affine), 0.0)
    assert front.shape[2] == 3
    assert front.min() >= 0
    assert front.max() <= 1
    (liver_row, liver_column), (spleen_row, spleen_column) = (
        place_of(front, colour) for colour in (LIVER, SPLEEN)
    )
    assert liver_column < 0.4 < 0.6 < spleen_column  # right is on the left
    assert spleen_row < 0.4 < 0.6 < liver_row  # superior on top
    side = preview.render(organs(affine), 90.0)
    assert place_of(side, LIVER)[1] < 0.4 < 0.6 < place_of(side, SPLEEN)[1]  # anterior on the left


def test_the_organ_in_front_hides_the_one_behind():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:7, 5, 1:7] = 1  # anterior
    labels[3:5, 2, 3:5] = 2
    volume = Volume(labels, Geometry((8, 8, 8), np.eye(4)))
    front, back = (preview.render(volume, degrees) for degrees in (0.0, 180.0))
    assert place_of(back, SPLEEN) == pytest.approx(0.5, abs=0.05)
    place_of(front, LIVER)
    with pytest.raises(AssertionError):
        place_of(front, SPLEEN)


@pytest.mark.parametrize(
    "affine", [PATIENT, TURNED @ np.diag((2, 1, 1, 1))], ids=["patient", "turned"]
)
def test_axial_slices_have_right_on_the_left_and_anterior_on_top(affine):
    labels = organs(affine)
    figure = Figure()
    panels = figure.subplots(1, 4)
    preview._draw_slices(panels, labels, labels)
    for axes, colour in ((panels[0], 1), (panels[-1], 2)):
        shown = axes.get_images()[0].get_array()
        row, column = np.argwhere(shown == colour).mean(axis=0) / shown.shape
        assert (column < 0.5) == (colour == 1)
        assert (row < 0.5) == (colour == 1)


@pytest.mark.parametrize("empty", [False, True])
def test_a_picture_is_written_even_of_nothing(tmp_path, empty):
    labels = organs(PATIENT)
    if empty:
        labels.array[:] = 0
    segments = [segment_for("liver", 1), segment_for("spleen", 2)]
    path = tmp_path / "preview.png"
    preview.write_preview(path, labels, labels, segments, "scan")
    with Image.open(path) as picture:
        assert picture.width > 800
        assert np.asarray(picture.convert("L")).std() > 5
