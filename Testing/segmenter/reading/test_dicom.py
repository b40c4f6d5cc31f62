# SPDX-License-Identifier: Apache-2.0
"""DICOM series as scanners, archives and broken copies leave them: right, or one sentence."""

import numpy as np
import pydicom
import pytest
from dicom_series import write_enhanced, write_slices
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_volume

GRID = Geometry((5, 4, 6), np.diag((-2.0, -3.0, 7.0, 1.0)))
SCALES = ("Slope", "Intercept")
SCAN = Volume(np.arange(120, dtype=np.int16).reshape(6, 4, 5), GRID)


@pytest.fixture
def slices(tmp_path):
    """A folder with a file for each slice, 6.dcm being the first one."""
    write_slices(tmp_path / "scan", SCAN)
    return tmp_path / "scan"


@pytest.fixture
def enhanced(tmp_path):
    write_enhanced(tmp_path / "scan", SCAN)
    return tmp_path / "scan"


def edit(path, change):
    """Read a DICOM file, change it, and write it again."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def frames_of(dataset):
    return dataset.PerFrameFunctionalGroupsSequence


def position_of(frame):
    return frame.PlanePositionSequence[0].ImagePositionPatient


def assert_is_the_scan(volume):
    np.testing.assert_array_equal(volume.array, SCAN.array)
    assert volume.geometry.matches(GRID)


# --- Enhanced multi-frame


def test_a_series_keeps_its_place_and_the_modality_that_it_states(slices, tmp_path):
    write_enhanced(tmp_path / "enhanced", SCAN)
    for folder, modality in ((slices, "CT"), (tmp_path / "enhanced", "MR")):
        volume = read_volume(folder)
        assert_is_the_scan(volume)
        assert volume.modality == modality
        assert volume.remarks == ()


def test_another_modality_is_told_and_left_to_the_intensities(slices):
    for path in slices.iterdir():
        edit(path, lambda dataset: setattr(dataset, "Modality", "PT"))
    volume = read_volume(slices)
    assert volume.modality is None
    assert volume.remarks == ("DICOM says PT; the networks know CT and MR.",)


def test_frames_in_any_order_are_sorted_by_their_positions(enhanced):
    def shuffle(dataset):
        order = [3, 0, 5, 1, 4, 2]
        frames = list(frames_of(dataset))
        dataset.PerFrameFunctionalGroupsSequence = Sequence([frames[n] for n in order])
        dataset.PixelData = SCAN.array[order].astype(np.uint16).tobytes()

    edit(enhanced / "enhanced.dcm", shuffle)
    assert_is_the_scan(read_volume(enhanced))


def test_a_frame_a_hundredth_of_a_millimetre_off_changes_nothing(enhanced):
    def shift(dataset):
        position_of(frames_of(dataset)[3])[2] += 0.01

    edit(enhanced / "enhanced.dcm", shift)
    assert_is_the_scan(read_volume(enhanced))


def test_positions_that_occur_twice_are_several_volumes(enhanced):
    def repeat(dataset):
        for frame in list(frames_of(dataset))[3:]:
            position_of(frame)[2] -= 21

    edit(enhanced / "enhanced.dcm", repeat)
    with pytest.raises(VolumeError, match="6 frames at 3 places, so it holds several volumes"):
        read_volume(enhanced)


def test_two_files_of_one_series_are_two_volumes_or_the_halves_of_one(enhanced):
    first, second = enhanced / "enhanced.dcm", enhanced / "second.dcm"
    second.write_bytes(first.read_bytes())
    with pytest.raises(VolumeError, match="2 files at 6 places, so it holds several volumes"):
        read_volume(enhanced)

    def keep(part):
        def change(dataset):
            dataset.PerFrameFunctionalGroupsSequence = Sequence(list(frames_of(dataset))[part])
            dataset.PixelData = SCAN.array[part].astype(np.uint16).tobytes()
            dataset.NumberOfFrames = 3

        return change

    edit(first, keep(slice(3, 6)))
    edit(second, keep(slice(0, 3)))
    assert_is_the_scan(read_volume(enhanced))


def test_slopes_that_differ_between_frames_are_applied_and_told(enhanced):
    def rescale(dataset):
        for n, frame in enumerate(frames_of(dataset)):
            item = Dataset()
            item.RescaleSlope, item.RescaleIntercept, item.RescaleType = f"{n + 1}", "-5", "US"
            frame.PixelValueTransformationSequence = Sequence([item])

    edit(enhanced / "enhanced.dcm", rescale)
    volume = read_volume(enhanced)
    wanted = SCAN.array * np.arange(1, 7)[:, None, None] - 5.0
    np.testing.assert_array_equal(volume.array, wanted)
    assert volume.remarks == ("Its slices are rescaled in 6 different ways.",)


def test_stacks_of_several_directions_are_refused(enhanced):
    def turn(dataset):
        item = Dataset()
        item.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
        frames_of(dataset)[2].PlaneOrientationSequence = Sequence([item])

    edit(enhanced / "enhanced.dcm", turn)
    with pytest.raises(VolumeError, match="do not lie in one direction"):
        read_volume(enhanced)


@pytest.mark.parametrize("lost", ["PlanePositionSequence", "PerFrameFunctionalGroupsSequence"])
def test_frames_that_do_not_say_where_they_lie_are_refused(enhanced, lost):
    def lose(dataset):
        delattr(frames_of(dataset)[4] if lost.startswith("Plane") else dataset, lost)

    edit(enhanced / "enhanced.dcm", lose)
    with pytest.raises(VolumeError, match=r"lacks its position|not where they lie"):
        read_volume(enhanced)


# --- a file for each slice


def test_compressed_slices_are_decoded_to_the_same_voxels(slices):
    for path in slices.iterdir():
        edit(path, lambda dataset: dataset.compress(RLELossless))
    volume = read_volume(slices)
    assert_is_the_scan(volume)
    assert volume.remarks == ()


def test_compressed_pixels_that_cannot_be_decoded_are_refused(slices):
    for path in slices.iterdir():
        edit(path, lambda dataset: dataset.compress(RLELossless))
    path = slices / "3.dcm"
    path.write_bytes(path.read_bytes().replace(b"\xfe\xff\xdd\xe0", b"\xfe\xff\x00\xe0"))
    with pytest.raises(VolumeError, match=r"3\.dcm is cut off or damaged"):
        read_volume(slices)


@pytest.mark.parametrize("kept", [0, 60, 200, -300, -1])
@pytest.mark.parametrize("name", ["1.dcm", "3.dcm", "6.dcm"])
def test_a_slice_that_is_empty_or_cut_off_is_named(slices, name, kept):
    path = slices / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(VolumeError, match=rf"{name} is (empty|cut off|damaged)"):
        read_volume(slices)


def test_a_slice_whose_series_is_garbled_is_not_left_out(slices):
    edit(slices / "1.dcm", lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3"))
    path = slices / "1.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(VolumeError, match=r"1\.dcm is cut off"):
        read_volume(slices)


def test_other_files_are_no_slices(slices):
    (slices / "._1.dcm").write_bytes(b"what macOS leaves")
    (slices / "notes.txt").write_text("")
    report = Dataset()
    report.SOPClassUID, report.SeriesInstanceUID = pydicom.uid.BasicTextSRStorage, "1.2"
    report.SOPInstanceUID = "1.2.3"
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    report.save_as(slices / "report.dcm", enforce_file_format=True)
    assert_is_the_scan(read_volume(slices))


@pytest.mark.parametrize(
    ("thickness", "wanted", "remark"),
    [("5", 5.0, ()), (None, 1.0, ("Its only slice does not say how thick it is",))],
)
def test_a_single_slice_is_as_thick_as_it_says(slices, thickness, wanted, remark):
    for path in list(slices.iterdir())[1:]:
        path.unlink()
    (path,) = slices.iterdir()
    edit(path, lambda dataset: setattr(dataset, "SliceThickness", thickness))
    volume = read_volume(slices)
    np.testing.assert_allclose(volume.geometry.spacing, (2, 3, wanted))
    assert [said.startswith(begin) for said, begin in zip(volume.remarks, remark, strict=True)] in (
        [],
        [True],
    )


@pytest.mark.parametrize(
    ("keyword", "value", "complaint"),
    [
        ("PixelSpacing", ["2", "2"], "pixels of different sizes"),
        ("Columns", 4, "differs from|bytes of pixels"),
        ("BitsStored", 12, "differs from .* in its BitsStored"),
        ("ImagePositionPatient", ["0", "0", "nan"], "impossible ImagePositionPatient"),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], "not perpendicular"),
        ("RescaleIntercept", None, "one of RescaleSlope and RescaleIntercept"),
        ("RescaleSlope", "0", "impossible RescaleSlope"),
        ("PixelSpacing", ["-3", "2"], "impossible PixelSpacing"),
        ("PhotometricInterpretation", "MONOCHROME1", "is inverted"),
        ("PatientID", "P2", "differ in their PatientID"),
        ("Modality", "MR", "differ in their Modality"),
        ("FrameOfReferenceUID", "1.2.3", "differ in their FrameOfReferenceUID"),
        ("BitsAllocated", 12, "does not have integers of 8, 16 or 32 bits"),
    ],
)
def test_a_slice_that_is_none_of_the_volume_is_refused(slices, keyword, value, complaint):
    edit(slices / "2.dcm", lambda dataset: setattr(dataset, keyword, value))
    with pytest.raises(VolumeError, match=complaint):
        read_volume(slices)


def test_slices_of_which_some_say_how_to_rescale_them_are_refused(slices):
    edit(slices / "2.dcm", lambda dataset: [delattr(dataset, f"Rescale{n}") for n in SCALES])
    with pytest.raises(VolumeError, match="some slices say how to rescale"):
        read_volume(slices)


def test_intensities_by_a_table_are_refused(slices):
    def by_table(dataset):
        for name in SCALES:
            delattr(dataset, f"Rescale{name}")
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [2, 0, 16], "HU"
        table.LUTData = b"\0\1\0\2"
        dataset.ModalityLUTSequence = Sequence([table])

    for path in slices.iterdir():
        edit(path, by_table)
    with pytest.raises(VolumeError, match="by a table"):
        read_volume(slices)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beyond_those_of_a_value_are_left_out(slices, signed):
    """Overlays in the upper bits, and negative values whose sign is not extended."""

    def with_more_bits(dataset):
        values = np.frombuffer(dataset.PixelData, np.uint16) - np.uint16(1084 * signed)
        values = values & 0xFFF if signed else values | 0x8000
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(signed)
        dataset.RescaleIntercept = "60" if signed else "-1024"
        dataset.PixelData = values.tobytes()

    for path in slices.iterdir():
        edit(path, with_more_bits)
    volume = read_volume(slices)
    assert_is_the_scan(volume)
    assert volume.remarks == ("Only 12 of the 16 bits of its pixels hold values.",)


@pytest.mark.parametrize(("stored", "high"), [(12, 15), (17, 16)])
def test_values_in_other_bits_than_the_lowest_are_refused(slices, stored, high):
    for path in slices.iterdir():
        edit(path, lambda d: setattr(d, "BitsStored", stored) or setattr(d, "HighBit", high))
    with pytest.raises(VolumeError, match=f"values of {stored} bits up to bit {high}"):
        read_volume(slices)


def test_an_enhanced_file_may_say_how_to_rescale_it_outside_of_its_frames(enhanced):
    edit(
        enhanced / "enhanced.dcm",
        lambda d: setattr(d, "RescaleSlope", "3") or setattr(d, "RescaleIntercept", "7"),
    )
    np.testing.assert_array_equal(read_volume(enhanced).array, 3 * SCAN.array + 7)


def test_intensities_take_no_more_bits_than_they_need(slices):
    assert read_volume(slices).array.dtype == np.int16
    for path in slices.iterdir():
        edit(path, lambda dataset: setattr(dataset, "RescaleSlope", "100"))
    volume = read_volume(slices)
    assert volume.array.dtype == np.int32
    np.testing.assert_array_equal(volume.array, (SCAN.array.astype(int) + 1024) * 100 - 1024)


@pytest.mark.parametrize(
    ("syntax", "order"), [(ImplicitVRLittleEndian, "<"), (ExplicitVRBigEndian, ">")]
)
def test_every_order_of_bytes_gives_the_same_voxels(slices, syntax, order):
    for path in slices.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.pixel_array.astype(f"{order}u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(
            path,
            dataset,
            implicit_vr=order == "<",
            little_endian=order == "<",
            enforce_file_format=True,
        )
    assert_is_the_scan(read_volume(slices))


def test_files_without_preamble_are_read(slices):
    for path in slices.iterdir():
        dataset = pydicom.dcmread(path)
        bare = Dataset()
        bare.update({element.tag: element for element in dataset})
        bare.save_as(path, implicit_vr=True, little_endian=True)
    assert path.read_bytes()[128:132] != b"DICM"
    assert_is_the_scan(read_volume(slices))


def test_a_file_that_is_deflated_as_a_whole_is_refused(slices):
    edit(
        slices / "2.dcm",
        lambda dataset: setattr(
            dataset.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian
        ),
    )
    with pytest.raises(VolumeError, match=r"2\.dcm is compressed as a whole"):
        read_volume(slices)
