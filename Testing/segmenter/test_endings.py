# SPDX-License-Identifier: Apache-2.0
"""The endings of files, and their names without them."""

import subprocess
import sys

import pytest

from SRCSMSegmenterLib.endings import (
    LABELS,
    READABLE,
    SEGMENTATION,
    WRITABLE,
    case_name,
    ending,
    stem,
)


@pytest.mark.parametrize(
    ("name", "expected", "without"),
    [
        ("a/scan.nii.gz", ".nii.gz", "scan"),
        ("Scan.1.NII.GZ", ".nii.gz", "Scan.1"),
        ("organs.seg.nrrd", ".seg.nrrd", "organs"),
        ("scan.nrrd", ".nrrd", "scan"),
        ("scan.mhd", ".mhd", "scan"),
        ("dicom.folder", "", "dicom.folder"),
        ("scan.gz", "", "scan.gz"),
    ],
)
def test_a_name_and_its_ending(name, expected, without):
    assert ending(name) == expected
    assert stem(name) == without


def test_the_folder_that_one_is_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "series").mkdir()
    monkeypatch.chdir(tmp_path / "series")
    assert stem(".") == "series"


def test_a_link_is_called_by_its_own_name(tmp_path):
    (tmp_path / "b7f3.nii.gz").touch()
    (tmp_path / "case.nii.gz").symlink_to("b7f3.nii.gz")
    assert stem(tmp_path / "case.nii.gz") == "case"


def test_what_is_written_can_be_read():
    assert set(WRITABLE) < set(READABLE)
    assert set(LABELS) == {*WRITABLE, SEGMENTATION}


def test_endings_need_no_package():
    code = "import sys, SRCSMSegmenterLib.endings; print('numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("imagesTs/ct_01_0000.nii.gz", "ct_01"),
        ("ct_0000_b.mha", "ct_0000_b"),
        ("_0000.nii", "_0000"),
    ],
)
def test_a_case_is_named_as_nnunet_names_its_label_map(path, name):
    assert case_name(path) == name
