# SPDX-License-Identifier: Apache-2.0
"""NRRD files of other writers: the same voxels at the same place as ITK reads, or a refusal."""

import bz2
import gzip
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.reading.nrrd import segment_names
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_labels

VOXELS = np.arange(120, dtype=np.int16).reshape(6, 4, 5) - 7
HEADER = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 4 6",
    "space directions": "(0,2,0) (-3,0,0.5) (0,0,4)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,-20,30)",
}


def write(path, data, **changes):
    """Write a header, fields of which are changed or (None) left out, and data behind it."""
    fields = HEADER | {key.replace("_", " "): value for key, value in changes.items()}
    lines = [f"{key}: {value}" for key, value in fields.items() if value is not None]
    path.write_bytes("\n".join(["NRRD0005", "# a comment", *lines, "", ""]).encode() + data)
    return path


def as_itk(path):
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    geometry = Geometry(image.GetSize(), np.diag((-1, -1, 1, 1)) @ affine)
    return Volume(sitk.GetArrayFromImage(image), geometry)


def assert_as_itk(path, remarks=()):
    read, wanted = read_volume(path), as_itk(path)
    np.testing.assert_array_equal(read.array, VOXELS)
    np.testing.assert_array_equal(wanted.array, VOXELS)
    assert read.geometry.matches(wanted.geometry)
    assert [said.split(";")[0] for said in read.remarks] == list(remarks)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("raw", VOXELS.tobytes()),
        ("gzip", gzip.compress(VOXELS.tobytes())),
        ("gz", gzip.compress(VOXELS.tobytes(), 1)),
        ("bzip2", bz2.compress(VOXELS.tobytes())),
        ("ascii", " ".join(map(str, VOXELS.ravel())).encode()),
    ],
)
def test_every_encoding_gives_the_same_voxels(tmp_path, encoding, data):
    path = write(tmp_path / "scan.nrrd", data, encoding=encoding)
    if encoding == "bzip2":  # ITK is built without it
        np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    else:
        assert_as_itk(path)


def test_big_endian_skipped_and_detached_voxels_are_found(tmp_path):
    big = VOXELS.astype(">i2").tobytes()
    assert_as_itk(write(tmp_path / "a.nrrd", big, endian="big"))
    assert_as_itk(write(tmp_path / "b.nrrd", b"12\n345\nxyz" + big, endian="big", line_skip="2",
                        byte_skip="3"))  # fmt: skip
    assert_as_itk(write(tmp_path / "c.nrrd", b"x" * 77 + big, endian="big", byte_skip="-1"))
    (tmp_path / "voxels.raw").write_bytes(big)
    assert_as_itk(write(tmp_path / "d.nhdr", b"", endian="big", data_file="voxels.raw"))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "v.raw.gz").write_bytes(gzip.compress(big))
    detached = {"data_file": "inner/v.raw.gz", "encoding": "gzip", "endian": "big"}
    assert_as_itk(write(tmp_path / "e.nhdr", b"", **detached))


def test_spaces_are_turned_and_headers_that_say_little_are_told(tmp_path):
    path, data = tmp_path / "scan.nrrd", VOXELS.tobytes()
    assert_as_itk(write(path, data, space="right-anterior-superior"))
    unsaid = "Its header does not say how it lies in the patient"
    assert_as_itk(write(path, data, space="scanner-xyz"), [unsaid])
    bare = {"space": None, "space_directions": None, "space_origin": None}
    assert_as_itk(write(path, data, spacings="2 3 4", **bare), [unsaid])
    unspaced = "Its header says nothing of its spacing"
    assert_as_itk(write(path, data, **bare), [unspaced, unsaid])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sizes": "5 4 5"}, "holds more voxels"),
        ({"sizes": "5 4 7"}, "is truncated"),
        ({"sizes": "5 4 99999999999"}, "none of a patient"),
        ({"sizes": "5 4 0"}, "at least one voxel"),
        ({"sizes": "5 4"}, "3 dimensions, but 2 sizes"),
        ({"dimension": "2", "sizes": "5 24"}, "as many kinds"),
        ({"type": "block"}, "type 'block'"),
        ({"type": None}, "lacks 'type'"),
        ({"endian": None}, "order of its bytes"),
        ({"encoding": "hex"}, "encoding 'hex'"),
        ({"encoding": "gzip"}, "is damaged"),
        ({"encoding": "ascii"}, "cannot be read|voxels"),
        ({"space": "left-anterior-superior"}, "programs read differently"),
        ({"space_directions": "(0,2,0) (-3,0,nan) (0,0,4)"}, "finite"),
        ({"space_directions": "(0,2,0) (0,2,0) (0,0,4)"}, "singular"),
        ({"space_directions": "none (0,2,0) (0,0,4)"}, "three numbers"),
        ({"space_directions": "(0,2) (0,2) (0,4)"}, "three numbers"),
        ({"space_origin": "(1,2)"}, "cannot be read"),
        ({"kinds": "vector domain domain"}, "one number a voxel"),
        ({"data_file": "/etc/passwd"}, "outside its folder"),
        ({"data_file": "../scan.nrrd"}, "outside its folder"),
        ({"data_file": "LIST"}, "several files"),
        ({"data_file": "v%03d.raw 1 6 1"}, "several files"),
        ({"data_file": "none.raw"}, "no file or folder .*none"),
        ({"axis_mins": "0 0 0"}, "axis mins"),
        ({"kinds": "domain domain time"}, "axis of time"),
        ({"space_units": '"cm" "cm" "cm"'}, "lengths in cm"),
        ({"units": '"mm" "mm" "in"'}, "lengths in in"),
    ],
)
def test_headers_that_are_wrong_are_refused(tmp_path, changes, complaint):
    with pytest.raises(VolumeError, match=complaint) as error:
        read_volume(write(tmp_path / "scan.nrrd", VOXELS.tobytes(), **changes))
    assert "\n" not in str(error.value)


def test_a_field_that_is_there_twice_is_refused(tmp_path):
    path = write(tmp_path / "scan.nrrd", VOXELS.tobytes(), spacings="nan nan nan\nsizes: 6 4 5")
    with pytest.raises(VolumeError, match="says 'sizes' twice"):
        read_volume(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_flipped_bit_of_compressed_voxels_is_noticed(tmp_path, place):
    data = bytearray(gzip.compress(VOXELS.tobytes()))
    data[int(len(data) * place)] ^= 1
    path = write(tmp_path / "scan.nrrd", bytes(data), encoding="gzip")
    with pytest.raises(VolumeError, match=r"is damaged|holds more|is truncated"):
        read_volume(path)


def test_a_zlib_stream_is_read_as_gzip(tmp_path):
    path = write(tmp_path / "scan.nrrd", zlib.compress(VOXELS.tobytes()), encoding="gzip")
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


def test_overlapping_segments_are_named(tmp_path):
    path = tmp_path / "organs.seg.nrrd"
    layers = (
        "list domain domain domain\nSegment0_Name:=liver\nSegment0_Layer:=0\n"
        "Segment1_Name:=tumour\nSegment1_Layer:=1"
    )
    write(path, np.zeros((6, 4, 5, 2), np.int16).tobytes(), dimension="4", sizes="2 5 4 6",
          space_directions="none (0,2,0) (-3,0,0.5) (0,0,4)", kinds=layers)  # fmt: skip
    with pytest.raises(VolumeError, match=r"overlapping segments in 2 layers \(liver, tumour\)"):
        read_labels(path)


def test_segments_are_named_without_reading_voxels(tmp_path):
    path = tmp_path / "organs.seg.nrrd"
    labels = Volume((VOXELS > 50).astype(np.uint8) * 3, Geometry((5, 4, 6), np.eye(4)))
    write_labels(path, labels, [segment_for("liver", 3), segment_for("Blob é", 9)])
    path.write_bytes(path.read_bytes()[:-40])
    assert segment_names(path) == {3: "liver", 9: "Blob é"}
    assert segment_names(tmp_path / "labels.nii.gz") == {}


def test_directions_without_a_space_are_refused_as_by_itk(tmp_path):
    path = write(tmp_path / "a.nrrd", VOXELS.tobytes(), space=None)
    with pytest.raises(VolumeError, match="names no space"):
        read_volume(path)
    with pytest.raises(RuntimeError):
        as_itk(path)
