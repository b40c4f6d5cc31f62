# SPDX-License-Identifier: Apache-2.0
"""Segmenting scans: right places on any grid, whole coverage, source matching, cancel, memory.

The network is a U-Net of one level with weights set by hand: its labels follow thresholds on the
normalised intensity, so that the right answer is known at every point of space.
"""

import os
import re
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from geometries import geometries
from hypothesis import HealthCheck, given, settings
from scipy.spatial.transform import Rotation
from threshold_network import SHARPNESS, THRESHOLDS, a_bundle

from srcsm_training.data import cases
from srcsm_training.segmentation import training as loop
from SRCSMSegmenterLib import inference
from SRCSMSegmenterLib.devices import available_devices, resolve_device
from SRCSMSegmenterLib.errors import (
    BundleError,
    Cancelled,
    DeviceError,
    SourceMatchingError,
    VolumeError,
)
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.inference import guess_modality, segment
from SRCSMSegmenterLib.intensity import IntensityRule, normalise, scale
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle, save_bundle
from SRCSMSegmenterLib.network import Convolution, NetworkConfig, UNet
from SRCSMSegmenterLib.organ_positions import Offset
from SRCSMSegmenterLib.resampling import smooth_mm
from SRCSMSegmenterLib.source_matching import fit, match, to_integers

MR = IntensityRule("MR")


def probabilities_of(x: np.ndarray) -> np.ndarray:
    """(3, ...) what the network makes of normalised intensities."""
    t1, t2 = THRESHOLDS
    logits = np.stack([0 * x, SHARPNESS * (x - t1), SHARPNESS * (2 * x - t1 - t2)])
    return torch.tensor(logits).softmax(0).numpy()


def folded_ramp(ras: np.ndarray) -> np.ndarray:
    """HU over space, -200 on a tilted plane and rising by 12 a mm on both sides of it.

    Both ends of a scan are bright, so that the body reaches all over it.
    """
    return np.abs((ras - (3.0, -5.0, 8.0)) @ np.array((0.48, 0.6, 0.64))) * 12 - 200


def expected_labels(hu: np.ndarray) -> np.ndarray:
    return np.digitize(hu / 200, THRESHOLDS)


def ras_of(geometry: Geometry) -> np.ndarray:
    """(K, J, I, 3)"""
    k, j, i = np.indices(geometry.shape)
    return geometry.to_ras(np.stack([i, j, k], -1))


def a_scan(geometry: Geometry, field=folded_ramp) -> Volume:
    return Volume(field(ras_of(geometry)), geometry)


def around_origin(size, spacing, turn=(0, 0, 0)) -> Geometry:
    """A grid centred on the origin, its axes turned by Euler angles in degrees."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return Geometry(size, affine)


def plain(volume: Volume, bundle: ModelBundle, **options):
    return segment(
        volume,
        bundle,
        **{
            "modality": "CT",
            "source_matching": False,
            "device": "cpu",
            "keep_largest": False,
            **options,
        },
    )


def assert_right(found, volume: Volume) -> None:
    """Labels are right within two of the 12 HU that the ramp rises in a mm, and where the network
    has voxels on all sides: 4 mm from the scan's faces. At its corners, they are mostly right."""
    hu, geometry = volume.array, volume.geometry
    clear = np.abs(hu[..., None] - np.array((-200, -100, 50))).min(-1) > 25
    for axis, (n, spacing) in enumerate(zip(geometry.shape, geometry.spacing[::-1], strict=True)):
        along = np.arange(n)
        within = (np.minimum(along, n - 1 - along) + 0.5) * spacing > 4 if n > 1 else along == 0
        clear &= np.expand_dims(within, tuple({0, 1, 2} - {axis}))
    right = expected_labels(hu)
    assert {0, 1, 2} == set(right[clear])
    np.testing.assert_array_equal(found.labels.array[clear], right[clear])
    assert (found.labels.array == right).mean() > 0.75


SMALL = GridSpec((20, 18, 18), (3.0, 4.0, 3.5))


@pytest.mark.parametrize("axes", ["patient", "slices"])
@pytest.mark.parametrize(
    "geometry",
    [
        around_origin((20, 22, 15), (2.0, 2.0, 3.0)),
        around_origin((20, 22, 15), (2.0, -2.0, 3.0)),
        around_origin((30, 18, 9), (-1.5, -2.5, -5.0)),
        around_origin((20, 22, 15), (2.0, 2.0, 3.0), turn=(90, 0, 90)),
        around_origin((26, 27, 19), (2.0, -2.0, 3.0), turn=(20, -35, 50)),
        around_origin((60, 70, 50), (0.7, 0.6, 0.9), turn=(0, 0, 10)),
        around_origin((8, 7, 6), (9.0, 8.0, 10.0)),
    ],
    ids=["straight", "left-handed", "flipped", "permuted", "oblique", "fine", "coarse"],
)
def test_labels_lie_where_they_belong_on_any_grid(geometry, axes):
    volume = a_scan(geometry)
    found = plain(volume, a_bundle(replace(SMALL, axes=axes)))
    assert found.labels.geometry is geometry
    assert found.labels.array.shape == found.confidence().shape == geometry.shape
    assert found.labels.array.dtype == np.uint8
    assert found.confidence().dtype == np.float16
    assert_right(found, volume)
    assert (found.confidence() > 0).all()


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(geometry=geometries(max_size=14, max_shear=0.2))
def test_labels_lie_where_they_belong_on_every_grid(geometry):
    to_middle = np.eye(4)
    to_middle[:3, 3] = (5, -5, 10) - geometry.centre
    geometry = Geometry(geometry.size, to_middle @ geometry.affine)
    volume = a_scan(geometry)
    with mock.patch.object(inference, "OVERLAP", 0.0):
        found = plain(volume, a_bundle(GridSpec((16, 15, 14), (4.0, 4.0, 4.0))))
    hu = volume.array
    # Interpolation from coarse voxels to fine ones and back is off where the ramp is folded.
    reach = 12 * (4.0 + geometry.spacing.max())
    clear = np.abs(hu[..., None] - np.array((-200, -100, 50))).min(-1) > reach
    clear &= found.confidence() > 0
    np.testing.assert_array_equal(found.labels.array[clear], expected_labels(hu)[clear])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_the_same_scan_stored_otherwise_gets_the_same_labels(axes, flips):
    geometry = around_origin((21, 18, 13), (2.0, 2.5, 3.0), turn=(5, 10, -20))
    rng = np.random.default_rng(0)
    volume = a_scan(geometry)
    volume = Volume(volume.array + rng.normal(0, 60, geometry.shape), geometry)
    # New voxel axis n is old axis axes[n], run backwards where flips[n] is -1.
    array = volume.array.transpose([2 - axes[2 - n] for n in range(3)])[
        tuple(slice(None, None, flips[2 - n]) for n in range(3))
    ]
    index = np.zeros((4, 4))
    for new, old in enumerate(axes):
        index[old, new] = flips[new]
        index[old, 3] = 0 if flips[new] > 0 else geometry.size[old] - 1
    index[3, 3] = 1
    size = tuple(geometry.size[a] for a in axes)
    stored = Volume(array, Geometry(size, geometry.affine @ index))
    bundle = a_bundle(SMALL, smoothing=1.5)

    expected = plain(volume, bundle).labels
    found = plain(stored, bundle).labels
    # The same place in space, not the same place in memory.
    there = np.rint(stored.geometry.to_ijk(ras_of(geometry))).astype(int)
    found = found.array[there[..., 2], there[..., 1], there[..., 0]]
    assert (found != expected.array).mean() < 1e-3
    assert len(np.unique(expected.array)) == 3


def test_a_left_handed_scan_gets_what_its_mirrored_copy_gets_voxel_for_voxel():
    left = around_origin((21, 18, 13), (2.0, 2.5, -3.0), turn=(5, 10, -20))
    assert left.left_handed
    noise = np.random.default_rng(0).normal(0, 60, left.shape)
    scan = Volume(a_scan(left).array + noise, left)
    mirrored = Volume(scan.array[::-1].copy(), left.mirrored())
    bundle = a_bundle(SMALL, smoothing=1.5)
    found, expected = (
        segment(v, bundle, modality="CT", source_matching=False) for v in (scan, mirrored)
    )
    assert found.labels.geometry is left
    np.testing.assert_array_equal(found.labels.array, expected.labels.array[::-1])
    np.testing.assert_array_equal(found.confidence(), expected.confidence()[::-1])
    for label in (1, 2):
        one, other = (result.probabilities.whole(label) for result in (found, expected))
        assert one.max() > 0.1
        np.testing.assert_array_equal(one, other[::-1])
    (k, mm), *_ = expected.least_certain[2]
    assert found.least_certain[2][0] == (12 - k, mm)


def test_a_long_scan_is_covered_from_end_to_end():
    volume = a_scan(around_origin((24, 25, 90), (3.0, 2.5, 4.0)))
    counted = []
    grid = GridSpec((12, 10, 8), (4.0, 4.0, 4.0))
    found = plain(volume, a_bundle(grid), progress=lambda stage, f: counted.append(stage))
    # 72 x 62.5 x 360 mm by windows of 48 x 40 x 32 mm, sharing half: 2 x 3 x 22.
    assert counted.count("network") == 2 * 3 * 22
    assert (found.confidence() > 0.3).all()
    assert_right(found, volume)


def test_the_overlap_is_followed(monkeypatch):
    monkeypatch.setattr(inference, "OVERLAP", 0.0)
    volume = a_scan(around_origin((24, 25, 90), (3.0, 2.5, 4.0)))
    grid, counted = GridSpec((12, 10, 8), (4.0, 4.0, 4.0)), []
    found = plain(volume, a_bundle(grid), progress=lambda stage, f: counted.append(stage))
    assert counted.count("network") == 2 * 2 * 12
    assert (found.confidence() > 0.3).all()


@pytest.mark.parametrize("thickness", [0.5, 3.5, 6.0])
@pytest.mark.parametrize("turn", [(0, 0, 0), (90, 0, 90), (30, 20, 10)])
def test_a_single_slice_is_segmented(thickness, turn):
    volume = a_scan(around_origin((30, 28, 1), (2.0, 2.0, thickness), turn))
    found = plain(volume, a_bundle(SMALL))
    assert found.labels.array.shape == (1, 28, 30)
    assert (found.confidence() > 0.3).all()
    assert (found.labels.array == expected_labels(volume.array)).mean() > 0.8


def test_what_lies_beyond_the_field_of_view_is_background_of_no_confidence():
    geometry = around_origin((60, 12, 12), (2.0, 3.0, 3.0))
    array = np.full(geometry.shape, -200.0)
    array[:, :, 25:35] = 150
    found = plain(Volume(array, geometry), a_bundle(GridSpec((16, 12, 14), (3.0, 4.0, 4.0))))
    # The body is 20 mm wide and in the middle, the field of view is 48 mm wide.
    seen = found.confidence()[6, 6] > 0
    assert np.flatnonzero(seen).tolist() == list(range(18, 42))
    assert (found.labels.array[:, :, ~seen] == 0).all()
    assert (found.labels.array[:, :, 26:34] == 2).all()


SAME = GridSpec((6, 5, 4), (2.0, 3.0, 4.0))


def known_slices(normalised=(-0.1, -0.9, -0.52, 0.26)) -> tuple[Volume, np.ndarray]:
    """A scan on the very grid of the network, one intensity a slice, and its probabilities."""
    normalised = np.array(normalised)
    geometry = around_origin(SAME.size, SAME.spacing)
    array = np.broadcast_to(normalised[:, None, None] * 200, geometry.shape).copy()
    return Volume(array, geometry), probabilities_of(normalised)


def test_probabilities_and_confidence_are_the_networks():
    volume, expected = known_slices()
    found = plain(volume, a_bundle(SAME))
    for label in (1, 2):
        whole = found.probabilities.whole(label)
        assert whole.shape == (4, 5, 6)
        assert whole.dtype == np.float16
        np.testing.assert_allclose(whole[:, 2, 3], expected[label], atol=2e-3)
    np.testing.assert_allclose(found.confidence()[:, 0, 0], expected.max(0), atol=2e-3)
    assert found.labels.array[:, 4, 5].tolist() == [1, 0, 0, 2]
    sure = {label: expected[label][expected.argmax(0) == label].mean() for label in (1, 2)}
    assert found.mean_confidence == pytest.approx(sure, abs=2e-3)


def test_only_the_largest_piece_of_a_label_is_kept_by_default():
    volume, p = known_slices((-0.1, -0.9, -0.2, -0.15))
    assert plain(volume, a_bundle(SAME)).labels.array[:, 1, 1].tolist() == [1, 0, 1, 1]
    options = {"modality": "CT", "source_matching": False, "device": "cpu"}
    found = segment(volume, a_bundle(SAME), **options)
    millilitres = 5 * 6 * np.prod(SAME.spacing) / 1000
    assert found.messages[-1].endswith(f"left out: {millilitres:.1f} ml of liver.")
    assert found.labels.array[:, 1, 1].tolist() == [0, 0, 1, 1]
    sure = [1 - p[1, 0], p[0, 1], p[1, 2], p[1, 3]]
    np.testing.assert_allclose(found.confidence()[:, 1, 1], sure, atol=2e-3)
    p[1, 0] = 0
    np.testing.assert_allclose(found.probabilities.whole(1)[:, 1, 1], p[1], atol=2e-3)
    assert found.mean_confidence[1] == pytest.approx(p[1, 2:].mean(), abs=2e-3)


def test_the_piece_that_lies_where_the_organ_should_is_kept_instead_of_the_largest():
    volume, _ = known_slices((-0.1, -0.9, -0.45, 0.26))
    next_slice = Offset(1, 2, (0.0, 0.0, float(SAME.spacing[2])), np.eye(3).tolist())
    options = {"modality": "CT", "source_matching": False, "device": "cpu"}
    bundle = a_bundle(SAME)
    assert segment(volume, bundle, **options).labels.array[:, 1, 1].tolist() == [1, 0, 0, 2]
    found = segment(volume, replace(bundle, offsets=(next_slice,)), **options)
    assert found.labels.array[:, 1, 1].tolist() == [0, 0, 1, 2]
    assert found.messages[-1].startswith("Not the largest piece was kept of liver, but the one")


def test_the_least_certain_slices_come_first_with_their_uncertainty():
    volume, p = known_slices()
    found = plain(volume, a_bundle(SAME)).least_certain
    area = 6 * 5 * 2.0 * 3.0
    uncertainty = np.minimum(p, 1 - p) * area / np.sqrt(p * area)
    # The liver wins in slice 0 alone; in slices 2 and 3 it is plausible and does not win. Slice 2
    # is less certain than slice 0, but nearer to slice 3 than 10 mm.
    assert [k for k, _ in found[1]] == [3, 0, 2]
    assert [k for k, _ in found[2]] == [3]
    for label in (1, 2):
        for k, value in found[label]:
            assert value == pytest.approx(uncertainty[label, k], rel=1e-3, abs=1e-5)


def test_windows_are_what_training_saw(monkeypatch):
    geometry = around_origin((40, 36, 11), (1.53, -1.47, 5.1), turn=(3, 0, 8))
    array = a_scan(geometry).array + np.random.default_rng(0).normal(0, 30, geometry.shape) + 300
    grid = GridSpec((16, 12, 14), (5.0, 6.0, 6.0))
    bundle = a_bundle(grid, MR, smoothing=1.0)
    seen = []
    encode = UNet.encode
    monkeypatch.setattr(UNet, "encode", lambda self, x: (seen.append(x), encode(self, x))[1])
    plain(Volume(array, geometry), bundle, modality="MR")

    scaled = torch.from_numpy(scale(array, MR).astype(np.float32))
    smoothed = smooth_mm(scaled, geometry.spacing, 1.0)
    tensors = {"image": smoothed.half(), "labels": torch.zeros(geometry.shape, dtype=torch.uint8)}
    tensors["affine"] = torch.tensor(geometry.affine)
    case = cases.place_case("case", tensors, grid, outputs=2)
    [(window, _)] = loop.case_windows(case, grid, "cpu")
    [x] = seen
    torch.testing.assert_close(x, normalise(window[None], MR), atol=5e-3, rtol=0)
    assert x.std() > 0.3


def test_without_matching_the_scan_is_normalised_by_its_own_modality(monkeypatch):
    volume = a_scan(around_origin((20, 22, 15), (3.0, 2.5, 4.0)))
    volume = Volume(volume.array + 200, volume.geometry)
    seen = []
    encode = UNet.encode
    monkeypatch.setattr(UNet, "encode", lambda self, x: (seen.append(x), encode(self, x))[1])
    plain(volume, a_bundle(GridSpec((20, 16, 20), (3.0, 3.5, 3.0))), modality="MR")
    quantiles = np.quantile(seen[0], (0.05, 0.95))
    np.testing.assert_allclose(quantiles, (-1, 1), atol=0.02)


def test_source_matching_undoes_a_monotone_change_of_contrast():
    geometry = around_origin((30, 28, 20), (2.0, 2.0, 3.0))
    ct = np.rint(a_scan(geometry).array).clip(-200, 200)
    # One voxel each at the ends, which source matching treats on their own.
    ct[ct == -200] = -199
    ct[ct == 200] = 199
    ct[0, 0, 0], ct[-1, -1, -1] = -200, 200
    mr = 5.0 * np.sqrt(ct + 200)
    bundle = replace(a_bundle(SMALL), histogram=fit([ct.astype(np.int32)]))
    expected = plain(Volume(ct, geometry), bundle).labels.array
    found = plain(Volume(mr, geometry), bundle, modality="MR", source_matching=True).labels.array
    assert len(np.unique(expected)) == 3
    assert (found != expected).mean() < 1e-3
    unmatched = plain(Volume(mr, geometry), bundle, modality="MR").labels.array
    assert (unmatched != expected).mean() > 0.1


def test_a_matched_volume_is_not_scaled_again(monkeypatch):
    geometry = around_origin(SMALL.size, SMALL.spacing)
    array = a_scan(geometry).array
    source = fit([np.arange(100, 900, 7, dtype=np.int32)])
    bundle = replace(a_bundle(SMALL, replace(MR, quantiles=(0.1, 0.8))), histogram=source)
    seen = []
    encode = UNet.encode
    monkeypatch.setattr(UNet, "encode", lambda self, x: (seen.append(x), encode(self, x))[1])
    plain(Volume(array, geometry), bundle, source_matching=True)
    rule = replace(bundle.description.rule, modality="CT")
    matched = torch.from_numpy(match(to_integers(array, rule), source)).float()
    expected = normalise(matched[None, None], bundle.description.rule)
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)


def test_the_modality_is_guessed_aloud_only_when_it_is_not_given():
    volume = a_scan(around_origin((20, 22, 15), (2.0, 2.0, 3.0)))
    guessed = plain(volume, a_bundle(SMALL), modality=None)
    assert len(guessed.messages) == 1
    assert re.fullmatch(
        r"Taken for CT: \d+% of its voxels are below -100, as air and fat are in a CT.",
        guessed.messages[0],
    )
    given_one = plain(volume, a_bundle(SMALL))
    assert given_one.messages == []
    np.testing.assert_array_equal(guessed.labels.array, given_one.labels.array)


@pytest.mark.parametrize(
    ("minimum", "modality"), [(-1024, "CT"), (-101, "CT"), (-90, "MR"), (0, "MR")]
)
def test_the_guess_follows_the_minimum(minimum, modality):
    assert guess_modality(np.array([minimum, 500], np.int16)) == modality


def test_progress_never_falls_and_ends_at_one():
    reported = []
    volume = a_scan(around_origin((24, 25, 60), (3.0, 2.5, 4.0)))
    found = plain(
        volume, a_bundle(SMALL), progress=lambda stage, fraction: reported.append((stage, fraction))
    )
    stages, fractions = zip(*reported, strict=True)
    assert list(dict.fromkeys(stages)) == ["prepare", "network", "resample"] == list(found.seconds)
    assert list(fractions) == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert all(value > 0 for value in found.seconds.values())


@pytest.mark.parametrize("stage", ["prepare", "network", "resample"])
def test_cancelling_stops_at_once(stage):
    calls = []

    def progress(now, fraction):
        calls.append(now)
        if now == stage:
            raise Cancelled("enough")

    volume = a_scan(around_origin((24, 25, 60), (3.0, 2.5, 4.0)))
    with pytest.raises(Cancelled):
        plain(volume, a_bundle(SMALL), progress=progress)
    assert calls.count(stage) == 1


def random_bundle(tmp_path) -> ModelBundle:
    """A U-Net with context, saved and loaded."""
    torch.manual_seed(0)
    network = NetworkConfig(classes=3, channels=(4, 4), stem=(2, 1, 1), norm="instance")
    bundle = replace(a_bundle(SMALL), network=network, weights=UNet(network).state_dict())
    save_bundle(tmp_path / "b", bundle, "")
    return load_bundle(tmp_path / "b")


def test_a_saved_network_gives_the_same_result_twice(tmp_path):
    bundle = random_bundle(tmp_path)
    volume = a_scan(around_origin((24, 25, 30), (3.0, 2.5, 4.0), turn=(0, 15, 0)))
    before = volume.array.copy()
    first, second = plain(volume, bundle), plain(volume, bundle)
    np.testing.assert_array_equal(first.labels.array, second.labels.array)
    np.testing.assert_array_equal(first.confidence(), second.confidence())
    np.testing.assert_array_equal(volume.array, before)


def test_the_network_computes_in_fp32_on_a_processor_that_has_bfloat16(tmp_path, monkeypatch):
    can = {"amx_bf16": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    forward, seen = Convolution.forward, []

    def noted(self, x):
        result = forward(self, x)
        seen.append((x.dtype, result.dtype))
        return result

    monkeypatch.setattr(Convolution, "forward", noted)
    plain(a_scan(around_origin((24, 25, 30), (3.0, 2.5, 4.0))), random_bundle(tmp_path))
    assert set(seen) == {(torch.float32, torch.float32)}


AS_ON_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Makes torch compute as on a processor that has no wider instructions, nor bfloat16's."""

IN_A_CHILD = """
import sys

import numpy as np

from SRCSMSegmenterLib.models.bundle import load_bundle
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.inference import segment

scan = np.load(sys.argv[2])
array = scan["array"]
found = segment(
    Volume(array, Geometry(array.shape[::-1], scan["affine"])),
    load_bundle(sys.argv[1]),
    modality="CT",
    source_matching=False,
    device="cpu",
    keep_largest=False,
)
np.savez(sys.argv[3], labels=found.labels.array, confidence=found.confidence())
"""


def test_a_processor_with_avx2_alone_finds_the_same(tmp_path):
    bundle = random_bundle(tmp_path)
    volume = a_scan(around_origin((24, 25, 30), (3.0, 2.5, 4.0)))
    scan, result = tmp_path / "scan.npz", tmp_path / "result.npz"
    np.savez(scan, array=volume.array, affine=volume.geometry.affine)
    subprocess.run(
        [sys.executable, "-c", IN_A_CHILD, tmp_path / "b", scan, result],
        env={**os.environ, **AS_ON_AVX2},
        check=True,
    )
    here, there = plain(volume, bundle), np.load(result)
    assert (here.labels.array != there["labels"]).mean() < 1e-3
    np.testing.assert_allclose(here.confidence(), there["confidence"], atol=1e-3)


def test_out_of_memory_goes_on_with_small_windows(monkeypatch):
    encode, sizes = UNet.encode, set()

    def small_memory(self, x):
        if x.numel() > 10 * 9 * 9:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        sizes.add(tuple(x.shape[:1:-1]))
        return encode(self, x)

    volume = a_scan(around_origin((24, 25, 30), (3.0, 2.5, 4.0)))
    expected = plain(volume, a_bundle(SMALL))
    monkeypatch.setattr(UNet, "encode", small_memory)
    found = plain(volume, a_bundle(SMALL))
    assert found.messages == ["Memory ran out; went on with windows of 10 x 9 x 9 voxels on cpu."]
    assert sizes == {(10, 9, 9)}
    # A network without context makes the same of small windows as of large ones.
    np.testing.assert_array_equal(found.labels.array, expected.labels.array)
    np.testing.assert_allclose(found.confidence(), expected.confidence(), atol=2e-3)


def test_small_windows_suit_the_network(tmp_path, monkeypatch):
    bundle, encode = random_bundle(tmp_path), UNet.encode
    whole = SMALL.size[::-1]

    def small_memory(self, x):
        if x.shape[2:] == whole:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert all(n % d == 0 for n, d in zip(x.shape[:1:-1], self.config.divisor, strict=True))
        return encode(self, x)

    monkeypatch.setattr(UNet, "encode", small_memory)
    found = plain(a_scan(around_origin((24, 25, 30), (3.0, 2.5, 4.0))), bundle)
    assert (found.confidence() > 0.3).all()


def test_a_gpu_without_memory_hands_over_to_the_cpu(monkeypatch):
    run, places = inference._run, []

    def no_memory_there(*arguments, **options):
        places.append(arguments[1].type)
        if places[-1] == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(*arguments, **options)

    volume = a_scan(around_origin((20, 22, 15), (2.0, 2.0, 3.0)))
    expected = plain(volume, a_bundle(SMALL)).labels.array
    monkeypatch.setattr(inference, "_run", no_memory_there)
    monkeypatch.setattr(inference, "resolve_device", torch.device)
    found = plain(volume, a_bundle(SMALL), device="cuda:0")
    assert places == ["cuda", "cuda", "cpu"]
    assert "windows of 10 x 9 x 9 voxels on cuda:0" in found.messages[0]
    assert "whole windows on cpu" in found.messages[1]
    np.testing.assert_array_equal(found.labels.array, expected)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")]
)
def test_no_memory_anywhere_is_one_sentence(monkeypatch, error):
    def no_memory(*arguments, **options):
        raise error

    monkeypatch.setattr(inference, "_run", no_memory)
    with pytest.raises(DeviceError, match="Memory ran out on cpu too"):
        plain(a_scan(around_origin((6, 6, 6), (2.0, 2.0, 3.0))), a_bundle(SMALL))


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, x):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(UNet, "encode", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        plain(a_scan(around_origin((6, 6, 6), (2.0, 2.0, 3.0))), a_bundle(SMALL))


def test_an_output_that_is_not_finite_is_an_error(tmp_path):
    """Finite weights, so large that the sums are not."""
    bundle = random_bundle(tmp_path)
    bundle = replace(
        bundle, weights={n: torch.full_like(w, 3e38) for n, w in bundle.weights.items()}
    )
    with pytest.raises(BundleError, match="is not finite"):
        plain(a_scan(around_origin((8, 8, 8), (4, 4, 4))), bundle)


def test_bad_intensities_are_refused():
    volume = a_scan(around_origin((6, 6, 6), (2.0, 2.0, 3.0)))
    broken = Volume(np.where(volume.array > -100, np.nan, volume.array), volume.geometry)
    for matching in (True, False):
        with pytest.raises(VolumeError, match="NaN"):
            plain(broken, a_bundle(SMALL), source_matching=matching)
    constant = Volume(np.full((6, 6, 6), 5.0), volume.geometry)
    with pytest.raises(SourceMatchingError):
        plain(constant, a_bundle(SMALL), source_matching=True)
    assert (plain(constant, a_bundle(SMALL)).labels.array == 1).all()


def test_the_cpu_is_always_there_and_auto_takes_the_fastest():
    assert available_devices()[-1] == "cpu"
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto") == torch.device(available_devices()[0])


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:x", "CPU", ""])
def test_an_unknown_or_absent_device_is_refused_with_those_there_are(name):
    with pytest.raises(DeviceError, match=r"choose auto or one of .*cpu"):
        resolve_device(name)


def test_cuda_devices_are_named_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert available_devices() == ["cuda:0", "cuda:1", "mps", "cpu"]
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="cuda:0, cuda:1, mps, cpu"):
        resolve_device("cuda:2")


@pytest.mark.needs_gpu
def test_the_gpu_agrees_with_the_cpu(tmp_path):
    volume = a_scan(around_origin((24, 25, 30), (3.0, 2.5, 4.0), turn=(0, 15, 0)))
    bundle = random_bundle(tmp_path)
    cpu, gpu = plain(volume, bundle), plain(volume, bundle, device="cuda")
    assert (cpu.labels.array != gpu.labels.array).mean() < 1e-3
    assert np.abs(cpu.confidence() - gpu.confidence()).max() < 0.01
