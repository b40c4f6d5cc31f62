# SPDX-License-Identifier: Apache-2.0
"""Voxels behind headers that lie: no memory, no waiting, and no other voxels."""

import gzip
import os
import struct

import numpy as np
import pytest

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.reading import stored
from SRCSMSegmenterLib.reading.stored import Inflated
from SRCSMSegmenterLib.volume_io import read_volume, write_volume

VOXELS = np.arange(120, dtype=np.int16).reshape(6, 4, 5)
GRID = Geometry((5, 4, 6), np.diag((2.0, 3.0, 4.0, 1.0)))


@pytest.fixture
def plain(tmp_path):
    """The bytes of a .nii file."""
    write_volume(tmp_path / "plain.nii", Volume(VOXELS, GRID))
    return (tmp_path / "plain.nii").read_bytes()


def test_gzip_members_and_padding_are_one_stream(tmp_path, plain):
    path = tmp_path / "scan.nii.gz"
    parts = [gzip.compress(part) for part in (plain[:100], plain[100:400], plain[400:], b"")]
    path.write_bytes(b"".join(parts) + bytes(700_000))
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


@pytest.mark.parametrize("tail", [b"tail", b"\0\0tail", b"\x1f\x8b"])
def test_what_follows_the_compressed_voxels_is_no_padding(tmp_path, plain, tail):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(plain) + tail)
    with pytest.raises(VolumeError, match="is damaged"):
        read_volume(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_fewer_bytes_than_a_row_may_follow_the_voxels(tmp_path, plain, compressed):
    path = tmp_path / ("scan.nii.gz" if compressed else "scan.nii")
    for extra, sound in ((9, True), (10, False)):
        content = plain + bytes(extra)
        path.write_bytes(gzip.compress(content) if compressed else content)
        if sound:
            np.testing.assert_array_equal(read_volume(path).array, VOXELS)
        else:
            with pytest.raises(VolumeError, match="more voxels than its header says"):
                read_volume(path)


def test_no_more_is_unpacked_than_the_header_announces(tmp_path, plain, monkeypatch):
    path, unpacked = tmp_path / "bomb.nii.gz", []
    path.write_bytes(gzip.compress(plain + bytes(50 << 20), 1))
    readinto = Inflated.readinto
    monkeypatch.setattr(
        Inflated, "readinto", lambda self, b: unpacked.append(readinto(self, b)) or unpacked[-1]
    )
    with pytest.raises(VolumeError, match="more voxels"):
        read_volume(path)
    assert sum(unpacked) < 2 << 20


def test_memory_is_asked_for_only_if_the_file_can_hold_the_voxels(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(stored.np, "empty", lambda *_: pytest.fail("memory was asked for"))
    for name, pack in (("scan.nii", bytes), ("scan.nii.gz", gzip.compress)):
        raw = bytearray(plain)
        struct.pack_into("<3h", raw, 42, 500, 350, 700)
        (tmp_path / name).write_bytes(pack(raw))
        with pytest.raises(VolumeError, match="is truncated"):
            read_volume(tmp_path / name)
    monkeypatch.setattr(stored, "_memory", lambda: 100)
    (tmp_path / "scan.nii").write_bytes(plain)
    with pytest.raises(VolumeError, match="more than this machine's memory"):
        read_volume(tmp_path / "scan.nii")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_a_pipe_or_device_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(VolumeError, match="is no regular file"):
        read_volume(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_behind_a_header_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "voxels.raw")
    (tmp_path / "scan.mhd").write_text(
        "NDims = 3\nDimSize = 5 4 6\nElementSpacing = 2 3 4\nElementType = MET_SHORT\n"
        "ElementDataFile = voxels.raw\n"
    )
    with pytest.raises(VolumeError, match="is no regular file"):
        read_volume(tmp_path / "scan.mhd")
