# SPDX-License-Identifier: Apache-2.0
"""Statistics of organs, against sums done by hand."""

import csv

import numpy as np
import pytest

from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.organ_statistics import COLUMNS, organ_statistics, write_statistics
from SRCSMSegmenterLib.terminology import segment_for

SEGMENTS = [segment_for("liver", 1), segment_for("spleen", 2)]


def a_case(affine):
    scan = np.zeros((4, 5, 6), np.int16)
    scan[1, 2, 3], scan[2, 2, 3] = 10, 30
    labels = np.zeros(scan.shape, np.uint8)
    labels[1:3, 2, 3] = 1
    geometry = Geometry((6, 5, 4), np.array(affine, float))
    return Volume(scan, geometry), Volume(labels, geometry)


def test_volume_intensities_and_extent_are_those_of_the_voxels():
    scan, labels = a_case(np.diag((1, 2, 5, 1)))
    liver, spleen = organ_statistics(scan, labels, SEGMENTS, {1: [(2, 3.5), (1, 1.0)], 2: []})
    assert liver.volume_ml == pytest.approx(0.02)
    assert (liver.mean, liver.sd) == (20.0, 10.0)
    assert liver.extent == pytest.approx((1, 2, 10))
    assert liver.least_certain == (2,)
    assert (spleen.volume_ml, spleen.mean, spleen.sd, spleen.extent) == (0.0, None, None, None)


def test_the_extent_is_along_the_patients_axes_whatever_the_scans_are():
    turned = [[0, 0, -5, 7], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]
    liver, _ = organ_statistics(*a_case(turned), SEGMENTS, {})
    assert liver.extent == pytest.approx((10, 1, 2))
    c, s = np.cos(0.3), np.sin(0.3)
    oblique = [[1, 0, 0, 0], [0, 2 * c, -5 * s, 0], [0, 2 * s, 5 * c, 0], [0, 0, 0, 1]]
    liver, _ = organ_statistics(*a_case(oblique), SEGMENTS, {})
    assert liver.extent == pytest.approx((1, 2 * c + 10 * s, 2 * s + 10 * c))


def test_the_table_has_a_row_per_organ_and_nothing_for_what_is_not_there(tmp_path):
    scan, labels = a_case(np.diag((1, 2, 5, 1)))
    least_certain = {1: [(k, 1.0) for k in range(7)]}
    path = tmp_path / "stats.csv"
    rows = organ_statistics(scan, labels, SEGMENTS, least_certain)
    write_statistics(path, "mr, 1", [rows])
    header, liver, spleen = csv.reader(path.read_text().splitlines())
    assert header == list(COLUMNS)
    assert liver == [
        *("mr, 1", "", "1", "liver", "0.020", "20.000", "10.000"),
        *("1.000", "2.000", "10.000", "K", "0 2 4 6"),
    ]
    assert spleen == ["mr, 1", "", "2", "spleen", "0.000", "", "", "", "", "", "K", ""]
    write_statistics(path, "cine", [rows, rows])
    found = [line[:4] for line in csv.reader(path.read_text().splitlines())][1:]
    assert found == [
        ["cine", frame, label, organ]
        for frame in "01"
        for label, organ in (("1", "liver"), ("2", "spleen"))
    ]
