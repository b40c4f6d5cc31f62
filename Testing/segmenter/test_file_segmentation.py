# SPDX-License-Identifier: Apache-2.0
"""Segmentation of a file by one call and by MONAI's bundle runner."""

import json
import logging

import numpy as np
import pytest
from threshold_network import a_bundle

from SRCSMSegmenterLib.errors import ConfigError, VolumeError
from SRCSMSegmenterLib.file_segmentation import segment_file
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import load_bundle, save_bundle
from SRCSMSegmenterLib.models.catalogue import find_bundles, shipped_models_folder
from SRCSMSegmenterLib.models.monai_config import INFERENCE, inference_config
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_volume


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model folder and a scan with blobs of all labels."""
    folder = tmp_path_factory.mktemp("files")
    save_bundle(folder / "model", a_bundle(GridSpec((8, 8, 8), (3, 3, 4))), "# card\n")
    array = np.random.default_rng(0).gamma(2, 90, (6, 7, 8)).astype(np.int16)
    array[2:5, 2:5, 2:6] += 400
    write_volume(folder / "scan.nii.gz", Volume(array, Geometry((8, 7, 6), np.diag([3, 3, 4, 1]))))
    return folder


@pytest.mark.parametrize(("choice", "matching"), [("auto", False), ("on", True), ("off", False)])
def test_the_labels_are_those_of_segment(files, choice, matching, tmp_path):
    bundle, scan = load_bundle(files / "model"), files / "scan.nii.gz"
    modality = bundle.description.rule.modality
    out = tmp_path / "labels.nii.gz"
    segment_file(scan, out, files / "model", modality=modality, source_matching=choice)
    expected = segment(read_volume(scan), bundle, modality=modality, source_matching=matching)
    assert len(np.unique(expected.labels.array)) > 1
    np.testing.assert_array_equal(read_labels(out).array, expected.labels.array)


def test_an_unknown_choice_is_refused_and_nothing_is_written(files, tmp_path):
    with pytest.raises(ConfigError, match="'perhaps'"):
        segment_file(
            files / "scan.nii.gz",
            tmp_path / "out.nii.gz",
            files / "model",
            source_matching="perhaps",
        )
    assert not [*tmp_path.iterdir()]


def test_every_shipped_model_has_the_configuration_of_the_runner():
    folders = find_bundles(shipped_models_folder())
    assert folders
    for folder in folders:
        assert json.loads((folder / INFERENCE).read_bytes()) == inference_config()


def test_monais_runner_finds_the_same_labels(files, tmp_path):
    run = pytest.importorskip("monai.bundle").run
    model, scan, out = files / "model", files / "scan.nii.gz", tmp_path / "labels.nii.gz"
    level = logging.root.level
    try:
        run(
            bundle_root=str(model),
            config_file=str(model / INFERENCE),
            image=str(scan),
            output=str(out),
            source_matching="on",
        )
    finally:
        logging.root.setLevel(level)
    expected = segment(read_volume(scan), load_bundle(model), source_matching=True)
    np.testing.assert_array_equal(read_labels(out).array, expected.labels.array)


def test_arrays_metatensors_and_folders_get_the_labels_of_volumes(files):
    data = pytest.importorskip("monai.data")
    scan, bundle = read_volume(files / "scan.nii.gz"), load_bundle(files / "model")
    expected = segment(scan, bundle, modality="CT")
    affine = scan.geometry.affine
    tensor = data.MetaTensor(scan.array.transpose()[None].copy(), affine=affine)
    for given, keywords in ((scan.array, {"affine": affine}), (tensor, {}), (tensor[0], {})):
        found = segment(given, files / "model", modality="CT", **keywords)
        np.testing.assert_array_equal(found.labels.array, expected.labels.array)
        np.testing.assert_allclose(found.labels.geometry.affine, affine)


def test_what_is_no_scan_is_refused(files):
    array, model = np.zeros((4, 5, 6)), files / "model"
    for image, affine, message in (
        (array, None, "needs affine="),
        (array[0], np.eye(4), r"three axes and one channel, not the shape \(5, 6\)"),
        (Volume(array, Geometry((6, 5, 4), np.eye(4))), np.eye(4), "a Volume has its own"),
        ([1, 2], None, "not a list"),
    ):
        with pytest.raises(VolumeError, match=message):
            segment(image, model, affine=affine)
