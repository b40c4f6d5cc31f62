# SPDX-License-Identifier: Apache-2.0
"""Pixel rules: known values, and none of them trips over black or odd volumes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SAMRefineLib.sam.pixels import EQUALISED, OFFICIAL, SRCSM, UNIT, PixelRule, to_pixels
from SRCSMSegmenterLib.errors import ConfigError, VolumeError

RULES = {"official": OFFICIAL, "unit": UNIT, "equalised": EQUALISED, "srcsm": SRCSM}
LINEAR = {name: RULES[name] for name in ("official", "unit", "srcsm")}


@pytest.fixture(params=RULES.values(), ids=RULES)
def rule(request):
    return request.param


def an_mr(seed=0):
    return np.random.default_rng(seed).gamma(2.0, 100.0, (5, 12, 9))


@pytest.mark.parametrize("rule", LINEAR.values(), ids=LINEAR)
def test_ct_is_windowed(rule):
    hu = np.array([[[-1000, -125, 75, 275, 3000]]], np.int16)
    span = rule.upper - rule.lower
    expected = rule.lower + span * np.array([0, 0, 0.5, 1, 1])
    assert np.allclose(to_pixels(hu, rule, "CT"), expected, atol=1e-4)
    assert np.allclose(to_pixels(hu, rule), expected, atol=1e-4)  # guessed from air


def test_the_window_is_the_rules():
    rule = PixelRule(0.0, 1.0, window=(0.0, 50.0))
    assert to_pixels(np.array([[[-1000, 10, 60]]]), rule)[0, 0].tolist() == pytest.approx(
        [0, 0.2, 1]
    )


@pytest.mark.parametrize("rule", LINEAR.values(), ids=LINEAR)
def test_mr_goes_from_quantile_to_quantile_of_the_whole_volume(rule):
    mr = np.arange(1001, dtype=np.float64).reshape(7, 11, 13) * 3  # quantile q is 3000 q
    pixels = to_pixels(mr, rule, "MR")
    unit = (pixels - rule.lower) / (rule.upper - rule.lower)
    assert np.allclose(unit, ((mr - 15) / (2985 - 15)).clip(0, 1), atol=1e-5)


def test_the_quantiles_are_the_rules():
    mr = np.arange(101, dtype=np.float32).reshape(1, 101, 1)
    unit = to_pixels(mr, PixelRule(0.0, 1.0, quantiles=(0.2, 0.6)), "MR").ravel()
    assert unit[[10, 20, 30, 60, 90]].tolist() == pytest.approx([0, 0, 0.25, 1, 1])


def test_quantiles_of_a_large_volume_come_from_a_part_of_it_and_are_nearly_the_same(monkeypatch):
    mr = np.random.default_rng(0).gamma(2.0, 100.0, (40, 100, 110))
    whole = to_pixels(mr, SRCSM, "MR")
    monkeypatch.setattr("SAMRefineLib.sam.pixels.SAMPLES", mr.size - 1)
    part = to_pixels(mr, SRCSM, "MR")
    assert not np.array_equal(part, whole)
    assert np.abs(part - whole).max() < 0.02
    assert np.array_equal(to_pixels(mr, SRCSM, "MR"), part)  # the same part every time
    monkeypatch.setattr("SAMRefineLib.sam.pixels.SAMPLES", mr.size)
    assert np.array_equal(to_pixels(mr, SRCSM, "MR"), whole)


def test_one_bright_voxel_does_not_darken_the_rest():
    mr = an_mr()
    before = to_pixels(mr, SRCSM)
    mr[2, 3, 4] = 1e6
    assert np.abs(to_pixels(mr, SRCSM) - before).mean() < 0.1


def test_equalised_slices_have_even_histograms_each():
    mr = np.stack([an_mr(1)[0], 50 * an_mr(2)[0]])
    for image in to_pixels(mr, EQUALISED, "MR"):
        ranks = np.sort(image.ravel())
        assert ranks[0] == 0
        assert ranks[-1] == 1
        assert np.abs(ranks - np.linspace(0, 1, ranks.size)).max() < 0.05


def test_equalising_known_values():
    image = np.array([[[10.0, 10, 10, 20], [30, 30, 40, 40]]])
    # Of the five above the darkest value, one is 20, two 30 and two 40.
    expected = [[[0, 0, 0, 0.2], [0.6, 0.6, 1, 1]]]
    assert np.allclose(to_pixels(image, EQUALISED, "MR"), expected)


def test_equalised_ct_is_windowed_first():
    ct = np.random.default_rng(0).uniform(-100, 200, (2, 8, 9))
    ct[:, 0] = -125
    ct[:, 1] = 275
    wide = ct.copy()
    wide[:, 0] = -1000
    wide[:, 1] = 3000
    assert np.array_equal(to_pixels(ct, EQUALISED, "CT"), to_pixels(wide, EQUALISED, "CT"))


def test_order_is_kept(rule):
    mr = an_mr()
    pixels = to_pixels(mr, rule, "MR")
    for before, after in zip(mr, pixels, strict=True):
        assert (np.diff(after.ravel()[np.argsort(before.ravel())]) >= 0).all()


@given(st.floats(0.01, 1e4), st.floats(-50, 1e4))
def test_mr_units_do_not_matter(scale, shift):
    mr = an_mr()
    for rule in LINEAR.values():
        same = to_pixels(scale * mr + shift, rule, "MR")
        assert np.allclose(same, to_pixels(mr, rule, "MR"), atol=2e-2 * (rule.upper - rule.lower))


def test_values_stay_within_the_rule_and_are_float32(rule):
    pixels = to_pixels(an_mr() - 90, rule)
    assert pixels.dtype == np.float32
    assert pixels.min() == rule.lower
    assert pixels.max() == pytest.approx(rule.upper)


def test_a_black_slice_stays_black(rule):
    mr = an_mr()
    mr[3] = 0
    assert (to_pixels(mr, rule, "MR")[3] <= rule.lower + 1e-6).all()


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("value", [-1024, 0, 5])
def test_a_volume_of_one_value_gives_finite_pixels(rule, modality, value):
    pixels = to_pixels(np.full((2, 3, 4), value, np.int16), rule, modality)
    assert np.isfinite(pixels).all()
    if modality == "MR":
        assert (pixels == rule.lower).all()


def test_a_volume_of_one_slice_works(rule):
    assert to_pixels(an_mr()[:1], rule).shape == (1, 12, 9)


def test_the_input_is_left_alone(rule):
    mr = an_mr().astype(np.float32)
    before = mr.copy()
    to_pixels(mr, rule)
    assert np.array_equal(mr, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(rule, bad):
    mr = an_mr()
    mr[1, 2, 3] = bad
    with pytest.raises(VolumeError, match="NaN or infinite"):
        to_pixels(mr, rule)


@pytest.mark.parametrize(
    "changes",
    [
        {"lower": 1.0},
        {"window": (5.0, 5.0)},
        {"quantiles": (0.9, 0.1)},
        {"quantiles": (0.1, 1.5)},
        {"mean": (0.0, 0.0, 0.0)},
        {"deviation": (0.0,)},
    ],
)
def test_impossible_rules_are_refused(changes):
    with pytest.raises(ConfigError):
        PixelRule(**{"lower": 0.0, "upper": 1.0, **changes})
