# SPDX-License-Identifier: Apache-2.0
"""Source matching: every integer as the definition in source_matching.py has it."""

import json
import weakref

import literal_source_matching as literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from SRCSMSegmenterLib import source_matching as sm
from SRCSMSegmenterLib.errors import ConfigError, SourceMatchingError, VolumeError
from SRCSMSegmenterLib.intensity import IntensityRule, scale

CT = IntensityRule("CT")
SOFT_TISSUE = IntensityRule("CT", window=(-125, 275))
MR = IntensityRule("MR")

INT32 = st.integers(-(2**31), 2**31 - 1)


def images(values, most=60):
    """int32 images of up to `most` voxels."""
    return hnp.arrays(np.int32, st.integers(1, most), elements=values)


def raw_images(dtype, values):
    """(2, 3, 4) images as a scanner delivers them."""
    return hnp.arrays(dtype, (2, 3, 4), elements=values)


def any_images():
    """Few values with many ties, some negative ones, and spans that no table can hold."""
    return st.one_of(images(st.integers(-3, 9)), images(st.integers(-1023, 1024)), images(INT32))


def matchable(image):
    """True where an image has the two distinct interior values that the definition asks for."""
    return np.unique(image).size >= 4


def int32(*values):
    return np.array(values, dtype=np.int32)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Small images cross block borders too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sm, "BLOCK", 5)
        yield


@pytest.fixture
def source():
    """Interior 10, 20, 30, 40 with CDF 0.1, 0.4, 0.8, 1; minimum -5."""
    return sm.SourceHistogram(np.array([10, 20, 30, 40]), np.array([1, 3, 4, 2]), -5)


# Step 1


def test_ct_is_clipped_to_the_window_and_rounded_half_to_even():
    raw = np.array([[-3024.0, -1023.0, -0.5, 0.5], [1.5, 2.5, 1023.51, 3000.0]], np.float32)
    assert sm.to_integers(raw, CT).tolist() == [[-1023, -1023, 0, 0], [2, 2, 1024, 1024]]
    assert sm.to_integers(raw, SOFT_TISSUE).tolist() == [[-125, -125, 0, 0], [2, 2, 275, 275]]


def test_mr_is_scaled_to_a_maximum_of_2048_with_zero_kept():
    raw = np.array([-100, 0, 1, 3, 250, 4096], np.int16)
    assert sm.to_integers(raw, MR).tolist() == [-50, 0, 0, 2, 125, 2048]


def test_a_robust_percentile_ignores_one_bright_voxel():
    raw = np.array([0.0, 1.0, 2.0, 3.0, 1e6])
    rule = IntensityRule("MR", maximum_percentile=50)
    assert sm.to_integers(raw, rule).tolist() == [0, 1024, 2048, 2048, 2048]


@given(
    st.one_of(
        raw_images(np.int16, st.integers(-3024, 4095)),
        raw_images(np.uint16, st.integers(0, 65535)),
        raw_images(np.int32, st.integers(-9, 9)),
        raw_images(np.float32, st.integers(-40, 40).map(lambda v: v / 4)),
        raw_images(np.float64, st.floats(-3024, 4095)),
    ),
    st.sampled_from([CT, SOFT_TISSUE, MR, IntensityRule("CT", window=(-2.5, 7.25))]),
)
def test_step_1_is_the_literal_one(raw, rule):
    if rule.modality == "MR":
        raw[0, 0, 0] = 4095  # a positive maximum, far enough from 0 to stay within int32
    integers = sm.to_integers(raw, rule)
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(integers, literal.to_integers(raw, rule))
    np.testing.assert_array_equal(integers, np.rint(scale(raw, rule)))


def test_nan_is_refused():
    raw = np.ones((2, 3, 4), np.float32)
    raw[1, 2, 3] = np.nan
    for rule in (CT, MR):
        with pytest.raises(VolumeError, match="NaN or infinite voxels: 1"):
            sm.to_integers(raw, rule)


def test_scaled_intensities_beyond_int32_are_refused():
    with pytest.raises(SourceMatchingError, match="without source matching"):
        sm.to_integers(np.array([-5000.0, 0.0, 1e-3]), MR)


# Steps 2 and 3


def test_the_source_is_the_sum_of_the_interiors_and_the_smallest_minimum():
    fitted = sm.fit([int32(0, 1, 1, 4, 7, 9, 9), int32(-2, -2, 4, 4, 5), int32(6, 6)])
    assert fitted.to_dict() == {"minimum": -2, "values": [1, 4, 7], "counts": [2, 3, 1]}
    assert (fitted.values.dtype, fitted.counts.dtype) == (np.int32, np.int64)


@given(st.lists(any_images(), max_size=4))
def test_the_source_is_the_literal_one(training):
    try:
        minimum, counts = literal.fit(training)
    except SourceMatchingError:
        with pytest.raises(SourceMatchingError):
            sm.fit(training)
        return
    fitted = sm.fit(iter(training))
    assert fitted.minimum == minimum
    assert dict(zip(fitted.values.tolist(), fitted.counts.tolist(), strict=True)) == counts


def test_fitting_holds_one_image_at_a_time():
    previous = None

    def stream():
        nonlocal previous
        for _ in range(3):
            assert previous is None or previous() is None
            image = int32(0, 1, 2, 3)
            previous = weakref.ref(image)
            yield image
            del image

    sm.fit(stream())


# Step 4


def test_a_worked_example(source):
    # Interior 1 1 1 2 2 3 3 3 3 4: CDF 0.3, 0.5, 0.9, 1.
    target = int32(0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 8).reshape(1, 13, 1)
    matched = sm.match(target, source)
    assert matched.dtype == np.int32
    assert matched.shape == target.shape
    assert matched.ravel().tolist() == [-5, -5, 10, 10, 10, 20, 20, 30, 30, 30, 30, 40, 40]


def test_equal_cdf_gives_that_very_value(source):
    # Interior CDF 0.1, 0.4, 0.8, 1 as the source's, from other counts.
    target = np.repeat(int32(-9, 0, 1, 6, 7, 50), [3, 2, 6, 8, 4, 1])
    assert np.unique(sm.match(target, source)).tolist() == [-5, 10, 20, 30, 40]
    assert sm.match(target, source).tolist() == [-5] * 3 + [10] * 2 + [20] * 6 + [30] * 8 + [40] * 5


def test_a_value_below_every_source_cdf_goes_to_the_source_minimum(source):
    target = np.repeat(int32(0, 1, 2, 3), [1, 1, 19, 1])  # CDF(1) = 0.05 < 0.1
    assert sm.match(target, source).tolist() == [-5, -5] + [40] * 20


def test_cdfs_are_compared_as_float64_quotients():
    # 5 * low - 4 * number = 1: the source CDF is above 4/5, but its float64 is that of 4/5.
    number = 9007199254740986
    low = (4 * number + 1) // 5
    assert 5 * low - 4 * number == 1
    assert low / number == 4 / 5
    source = sm.SourceHistogram(np.array([10, 20]), np.array([low, number - low]), 0)
    target = int32(0, 1, 1, 1, 1, 2, 3)
    assert sm.match(target, source).tolist() == [0, 10, 10, 10, 10, 20, 20]
    np.testing.assert_array_equal(
        sm.match(target, source), literal.match(target, 0, {10: low, 20: number - low})
    )


def test_cdfs_a_billionth_apart_are_told_apart():
    half = 500_000_000
    target = int32(0, 1, 2, 3)  # CDF(1) = 1/2
    above = sm.SourceHistogram(np.array([10, 20]), np.array([half + 1, half - 1]), 0)
    below = sm.SourceHistogram(np.array([10, 20]), np.array([half - 1, half + 1]), 0)
    assert sm.match(target, above).tolist() == [0, 0, 20, 20]
    assert sm.match(target, below).tolist() == [0, 10, 20, 20]


@given(any_images(), st.lists(any_images(), min_size=1, max_size=3))
def test_matching_is_the_literal_one(target, training):
    try:
        minimum, counts = literal.fit(training)
        expected = literal.match(target, minimum, counts)
    except SourceMatchingError:
        with pytest.raises(SourceMatchingError):
            sm.match(target, sm.fit(training))
        return
    np.testing.assert_array_equal(sm.match(target, sm.fit(training)), expected)


@given(
    hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(0, 50, width=32)),
    hnp.arrays(np.int16, (4, 5, 6), elements=st.integers(-1100, 1300)),
    st.booleans(),
)
def test_raw_mr_and_ct_match_as_the_literal_one_does(mr, ct, mr_is_source):
    mr[0, 0, :4] = [0, 10, 20, 50]
    ct[0, 0, :4] = [-1100, -3, 40, 1300]
    (training, rule), (target, target_rule) = ((mr, MR), (ct, CT))[:: 1 if mr_is_source else -1]
    source = sm.fit([sm.to_integers(training, rule)])
    expected = literal.match(
        literal.to_integers(target, target_rule),
        *literal.fit([literal.to_integers(training, rule)]),
    )
    np.testing.assert_array_equal(sm.match_to_source(target, target_rule, source), expected)


@given(any_images().filter(matchable), images(st.integers(-9, 30)).filter(matchable))
def test_order_is_kept(target, training):
    matched = sm.match(target, sm.fit([training]))
    assert (np.diff(matched[np.argsort(target)].astype(np.int64)) >= 0).all()


@given(any_images().filter(matchable))
def test_an_image_matched_to_itself_only_loses_its_maximum(image):
    matched = sm.match(image, sm.fit([image]))
    largest_interior = np.unique(image)[-2]
    np.testing.assert_array_equal(matched, np.minimum(image, largest_interior))


@given(any_images().filter(matchable), st.integers(2, 5))
def test_only_proportions_of_the_source_count(image, times):
    target = np.unique(image)
    once, often = sm.fit([image]), sm.fit([image] * times)
    np.testing.assert_array_equal(sm.match(target, once), sm.match(target, often))


@given(any_images().filter(matchable), images(st.integers(-9, 30)).filter(matchable))
def test_only_the_ranks_of_the_target_count(target, training):
    ranks = np.searchsorted(np.unique(target), target).astype(np.int32)
    source = sm.fit([training])
    np.testing.assert_array_equal(sm.match(target, source), sm.match(7 * ranks - 40, source))


def test_images_with_the_whole_int32_range_need_no_giant_table(source):
    target = int32(-(2**31), -(2**31) + 1, 0, 5, 2**31 - 2, 2**31 - 1)  # CDF 1/4, 1/2, 3/4, 1
    assert sm.match(target, source).tolist() == [-5, 10, 20, 20, 40, 40]


def test_strided_and_read_only_input_is_left_as_it_is(source):
    whole = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    whole.setflags(write=False)
    view = whole.transpose(2, 0, 1)[::-1, :, ::2]
    before = view.copy()
    np.testing.assert_array_equal(
        sm.match_to_source(view, CT, source), sm.match_to_source(before, CT, source)
    )
    integers = sm.to_integers(view, CT)
    integers.setflags(write=False)
    sm.fit([integers])
    sm.match(integers, source)
    np.testing.assert_array_equal(view, before)


def test_raw_arrays_are_refused_where_integers_are_wanted(source):
    raw = np.linspace(0, 9, 10)
    with pytest.raises(TypeError, match="to_integers"):
        sm.match(raw, source)
    with pytest.raises(TypeError, match="to_integers"):
        sm.fit([raw])


# Step 5


@pytest.mark.parametrize("voxels", [[3], [3, 3], [3, 4], [3, 4, 4, 5]])
def test_fewer_than_two_interior_values_is_an_error_on_either_side(voxels, source):
    with pytest.raises(SourceMatchingError, match=r"volume.*run without source matching"):
        sm.match(int32(*voxels), source)
    with pytest.raises(SourceMatchingError, match=r"training images.*run without source matching"):
        sm.fit([int32(*voxels)])


def test_a_source_without_images_is_an_error():
    with pytest.raises(SourceMatchingError, match="training images"):
        sm.fit([])


# The histogram in the bundle


@given(images(INT32).filter(matchable))
def test_a_histogram_survives_json(image):
    fitted = sm.fit([image])
    loaded = sm.SourceHistogram.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert loaded.to_dict() == fitted.to_dict()
    np.testing.assert_array_equal(sm.match(image, loaded), sm.match(image, fitted))


def test_a_histogram_cannot_be_changed(source):
    with pytest.raises(ValueError, match="read-only"):
        source.counts[0] = 7
    with pytest.raises(ValueError, match="read-only"):
        source.values[0] = 7


@pytest.mark.parametrize(
    "change",
    [
        {"values": [1.5, 4, 7]},
        {"values": [4, 1, 7]},
        {"values": [1, 1, 7]},
        {"values": [1, 4]},
        {"values": [1, 4, 2**31]},
        {"values": [1, 4, 2**70]},
        {"values": [[1], [4, 7]]},
        {"values": "147"},
        {"values": [], "counts": []},
        {"values": [1], "counts": [2]},
        {"counts": [2, 0, 1]},
        {"counts": [2, -3, 1]},
        {"counts": [2, 3.0, 1]},
        {"counts": [2**53, 3, 1]},
        {"counts": None},
        {"minimum": 1},
        {"minimum": 0.0},
        {"minimum": None},
        {"minimum": -(2**31) - 1},
        {"more": 1},
    ],
)
def test_a_damaged_histogram_is_refused(change):
    data = {"minimum": -2, "values": [1, 4, 7], "counts": [2, 3, 1]}
    sm.SourceHistogram.from_dict(data)
    with pytest.raises(SourceMatchingError, match="source histogram"):
        sm.SourceHistogram.from_dict(data | change)


@pytest.mark.parametrize("data", [None, [], {}, {"values": [1, 2], "counts": [1, 1]}])
def test_what_is_no_histogram_is_refused(data):
    with pytest.raises(SourceMatchingError, match="source histogram"):
        sm.SourceHistogram.from_dict(data)


# Real volumes


@pytest.mark.needs_data
def test_a_real_mr_matches_ct_as_the_literal_one_does(data_folder):
    sitk = pytest.importorskip("SimpleITK")

    def thinned(dataset, case):
        path = data_folder / dataset / "imagesTr" / f"{case}_0000.nii.gz"
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[::3, ::4, ::4]

    training = [thinned("Dataset101_AbdomenCT", case) for case in ("ct_01", "ct_02")]
    target = thinned("Dataset102_AbdomenMR", "mr_01")
    source = sm.fit(sm.to_integers(image, SOFT_TISSUE) for image in training)
    expected = literal.match(
        literal.to_integers(target, MR),
        *literal.fit(literal.to_integers(image, SOFT_TISSUE) for image in training),
    )
    np.testing.assert_array_equal(sm.match_to_source(target, MR, source), expected)


@pytest.mark.parametrize(
    ("choice", "modality", "expected"),
    [
        ("auto", "CT", False),
        ("auto", "MR", True),
        ("on", "CT", True),
        ("on", "MR", True),
        ("off", "CT", False),
        ("off", "MR", False),
    ],
)
def test_auto_matches_scans_of_another_modality_than_the_networks(choice, modality, expected):
    assert sm.wanted(choice, modality, IntensityRule("CT")) is expected


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match='"on", "off" or "auto", not \'maybe\''):
        sm.wanted("maybe", "CT", IntensityRule("CT"))


# --- by table, block by block


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, ">i2"]
)
@pytest.mark.parametrize("rule", [CT, MR], ids=["CT", "MR"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_table_gives_the_integers_of_the_definition(dtype, rule, seed):
    random = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -1500), min(limits.max, 3000)
    low = low if rule.modality == "CT" else max(low, -20)
    array = random.integers(low, high + 1, (4, 5, 6)).astype(dtype)
    source = sm.fit([random.integers(-900, 900, 500).astype(np.int32)])
    expected = sm.match_to_source(array, rule, source)
    voxels, convert = sm.matched_voxels(array, rule, source)
    assert np.array_equal(convert(voxels), expected.astype(np.float32))
    assert np.array_equal(convert(voxels[1:3, ::2]), expected[1:3, ::2].astype(np.float32))


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_histograms_that_threads_count_add_up(monkeypatch, threads):
    monkeypatch.setattr(sm, "BLOCK", 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    array = np.random.default_rng(4).integers(-50, 90, (7, 5, 6)).astype(np.int16)
    counts = sm._counted(array[::-1], (-60, 90))
    assert counts.tolist() == [np.count_nonzero(array == value) for value in range(-60, 91)]


@pytest.mark.parametrize("spread", [2**21, 0.37])
def test_floats_and_far_apart_integers_are_matched_too(spread):
    random = np.random.default_rng(3)
    array = random.integers(0, 900, (4, 5, 6)) * spread
    array = array.astype(np.float32 if spread < 1 else np.int64)
    source = sm.fit([random.integers(-900, 900, 500).astype(np.int32)])
    voxels, convert = sm.matched_voxels(array, MR, source)
    assert np.array_equal(convert(voxels), sm.match_to_source(array, MR, source))


def test_too_few_intensities_are_refused_by_table_as_well():
    source = sm.fit([np.arange(9, dtype=np.int32)])
    with pytest.raises(SourceMatchingError, match="two distinct intensities"):
        sm.matched_voxels(np.array([[[0, 5, 9]]], np.int16), MR, source)
