# SPDX-License-Identifier: Apache-2.0
"""MetaImage files of other writers, and headers that ITK dies of or hangs on."""

import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.volume_io import read_volume

VOXELS = np.arange(120, dtype=np.int16).reshape(6, 4, 5) - 7
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 -0.6 0 0.8 0.8 0 0.6",
    "Offset": "10 -20 30",
    "ElementSpacing": "2 3 4",
    "DimSize": "5 4 6",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def write(path, data=None, **changes):
    """Write a header, fields of which are changed or (None) left out, and data behind it."""
    fields = {key: value for key, value in (HEADER | changes).items() if value is not None}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last one of a header
    header = "".join(f"{key} = {value}\n" for key, value in fields.items())
    path.write_bytes(header.encode() + (VOXELS.tobytes() if data is None else data))
    return path


def assert_as_itk(path):
    image, read = sitk.ReadImage(str(path)), read_volume(path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    geometry = Geometry(image.GetSize(), np.diag((-1, -1, 1, 1)) @ affine)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOXELS)
    np.testing.assert_array_equal(read.array, VOXELS)
    assert read.geometry.matches(geometry)


def test_every_way_to_store_voxels_gives_the_same(tmp_path):
    big, packed = VOXELS.astype(">i2").tobytes(), zlib.compress(VOXELS.tobytes())
    assert_as_itk(write(tmp_path / "raw.mha"))
    assert_as_itk(write(tmp_path / "big.mha", big, BinaryDataByteOrderMSB="True"))
    size = str(len(packed))
    compressed = {"CompressedData": "True", "CompressedDataSize": size}
    assert_as_itk(write(tmp_path / "packed.mha", packed, **compressed))
    (tmp_path / "voxels.raw").write_bytes(b"header" + big)
    detached = {"BinaryDataByteOrderMSB": "True", "ElementDataFile": "voxels.raw"}
    assert_as_itk(write(tmp_path / "detached.mhd", b"", HeaderSize="6", **detached))
    assert_as_itk(write(tmp_path / "last.mhd", b"", HeaderSize="-1", **detached))
    text = " ".join(map(str, VOXELS.ravel())).encode()
    path = write(tmp_path / "text.mha", text, BinaryData="False")  # ITK reads none
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


def test_the_modality_of_a_header_is_kept(tmp_path):
    assert read_volume(write(tmp_path / "a.mha", Modality="MET_MOD_MR")).modality == "MR"
    assert read_volume(write(tmp_path / "b.mha", Modality="MET_MOD_UNKNOWN")).modality is None


def test_a_header_without_spacing_is_told(tmp_path):
    volume = read_volume(write(tmp_path / "a.mha", ElementSpacing=None))
    assert volume.remarks == ("Its header says nothing of its spacing; 1 mm is assumed.",)


@pytest.mark.parametrize("size", [None, "1", "99999999"])
def test_compressed_voxels_need_no_announced_size(tmp_path, size):
    packed = zlib.compress(VOXELS.tobytes())
    path = write(tmp_path / "a.mha", packed, CompressedData="True", CompressedDataSize=size)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.98])
def test_a_flipped_bit_of_compressed_voxels_is_noticed(tmp_path, place):
    packed = bytearray(zlib.compress(VOXELS.tobytes()))
    packed[int(place * len(packed))] ^= 1
    with pytest.raises(VolumeError, match=r"is damaged|is truncated|holds more"):
        read_volume(write(tmp_path / "a.mha", bytes(packed), CompressedData="True"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"NDims": "100000"}, "100000 dimensions, but 3 sizes"),
        ({"NDims": "-1"}, "-1 dimensions, but 3 sizes"),
        ({"NDims": "4", "DimSize": "5 4 3 2"}, r"4-D \(5 x 4 x 3 x 2\)"),
        ({"DimSize": "5 4 -6"}, "at least one voxel"),
        ({"DimSize": "5 4 7"}, "is truncated"),
        ({"DimSize": "5 4 5"}, "holds more voxels"),
        ({"DimSize": "5 4 99999999"}, "none of a patient"),
        ({"DimSize": None}, "lacks 'DimSize'"),
        ({"ElementType": "MET_STRING"}, "type 'MET_STRING'"),
        ({"ElementType": "MET_SHORT_ARRAY"}, "one number a voxel"),
        ({"ElementNumberOfChannels": "3"}, "one number a voxel"),
        ({"ElementSpacing": "2 3 nan"}, "finite"),
        ({"ElementSpacing": "2 3 0"}, "singular"),
        ({"ElementSpacing": "2 3"}, "cannot be read"),
        ({"TransformMatrix": "1 0 0 1"}, "cannot be read"),
        ({"ElementDataFile": "/etc/passwd"}, "outside its folder"),
        ({"ElementDataFile": "../a.mha"}, "outside its folder"),
        ({"ElementDataFile": "LIST"}, "several files"),
        ({"ElementDataFile": "v%03d.raw 1 6 1"}, "several files"),
        ({"ElementDataFile": "none.raw"}, "no file or folder .*none"),
        ({"ElementDataFile": ""}, "several files|cannot be read"),
        ({"ElementToIntensityFunctionSlope": "2"}, "rescaled"),
        ({"DistanceUnits": "um"}, "lengths in um"),
        ({"Position": "1 2 3"}, "Offset and Position differ"),
        ({"Rotation": "1 0 0 0 1 0 0 0 1"}, "TransformMatrix and Rotation differ"),
        ({"Comment": "a\nNDims = 3"}, "says NDims twice"),
        ({"Comment": "a\n\0\0\0"}, "damaged"),
    ],
)
def test_headers_that_are_wrong_are_refused(tmp_path, changes, complaint):
    with pytest.raises(VolumeError, match=complaint) as error:
        read_volume(write(tmp_path / "a.mha", **changes))
    assert "\n" not in str(error.value)


def test_a_folder_that_leads_elsewhere_by_a_link_is_outside(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "voxels.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "link").symlink_to(tmp_path / "other")
    path = write(tmp_path / "scans" / "a.mhd", b"", ElementDataFile="link/voxels.raw")
    with pytest.raises(VolumeError, match="outside its folder"):
        read_volume(path)
