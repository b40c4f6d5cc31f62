# SPDX-License-Identifier: Apache-2.0
"""Scans and label maps survive disk: same voxels, same place, or one clear sentence."""

import gzip
import itertools
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st

from SRCSMSegmenterLib import atomic
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.terminology import segment_for, terminology_entry
from SRCSMSegmenterLib.volume_io import (
    Frames,
    read_frames,
    read_labels,
    read_volume,
    write_frames,
    write_label_frames,
    write_labels,
    write_volume,
)

FORMATS = (".nii", ".nii.gz", ".nrrd", ".mha")
SEGMENTS = (segment_for("liver", 1), segment_for("right_kidney", 2), segment_for("Blob é", 5))


def a_scan(geometry=None, dtype=np.int16, seed=0) -> Volume:
    geometry = geometry or oblique_left_handed()
    rng = np.random.default_rng(seed)
    return Volume(rng.integers(0, 120, geometry.shape).astype(dtype), geometry)


def a_label_map(geometry=None) -> Volume:
    geometry = geometry or oblique_left_handed()
    values = np.random.default_rng(1).choice([0, 1, 2, 5], geometry.shape)
    return Volume(values, geometry)


def assert_same(read: Volume, wanted: Volume) -> None:
    np.testing.assert_array_equal(read.array, wanted.array)
    assert read.geometry.matches(wanted.geometry, tolerance=1e-4)


def itk_geometry(path) -> Geometry:
    """The grid as ITK alone sees it."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Geometry(image.GetSize(), np.diag((-1, -1, 1, 1)) @ affine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("volumes")


# --- there and back


@pytest.mark.parametrize("ending", FORMATS)
def test_a_scan_comes_back_with_its_voxels_and_its_place(ending, folder):
    @settings(max_examples=40, deadline=None)
    @given(geometry=geometries(), seed=st.integers(0, 99))
    def there_and_back(geometry, seed):
        path = folder / f"scan{ending}"
        scan = a_scan(geometry, seed=seed)
        write_volume(path, scan)
        assert_same(read_volume(path), scan)
        assert itk_geometry(path).matches(geometry, tolerance=1e-4)

    there_and_back()


@pytest.mark.parametrize("ending", FORMATS)
def test_sheared_axes_are_kept(ending, folder):
    @settings(max_examples=40, deadline=None)
    @given(geometry=geometries(max_shear=0.3))
    def there_and_back(geometry):
        path = folder / f"sheared{ending}"
        scan = a_scan(geometry)
        write_volume(path, scan)
        assert_same(read_volume(path), scan)

    there_and_back()


@pytest.mark.parametrize("ending", [*FORMATS, ".seg.nrrd"])
def test_a_label_map_comes_back_in_eight_bits(ending, folder):
    path = folder / f"labels{ending}"
    labels = a_label_map()
    write_labels(path, labels, SEGMENTS)
    read = read_labels(path)
    assert read.array.dtype == np.uint8
    assert_same(read, labels)


@pytest.mark.parametrize("ending", [*FORMATS, ".seg.nrrd"])
def test_a_label_map_with_large_values_comes_back_in_sixteen_bits(ending, folder):
    path = folder / f"many{ending}"
    labels = a_label_map()
    labels.array[1, 2, 3] = 40_000
    write_labels(path, labels, (*SEGMENTS, segment_for("vertebra", 40_000)))
    read = read_labels(path)
    assert read.array.dtype == np.uint16
    assert_same(read, labels)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", ">i2", "int32", "float32", "float64"])
def test_voxel_types_are_kept(ending, dtype, folder):
    path = folder / f"typed{ending}"
    scan = a_scan(dtype=dtype)
    write_volume(path, scan)
    read = read_volume(path)
    assert read.array.dtype == np.dtype(dtype).newbyteorder("=")
    assert_same(read, scan)


@pytest.mark.parametrize("ending", FORMATS)
def test_an_array_that_is_a_view_is_written_in_its_own_order(ending, folder):
    path = folder / f"view{ending}"
    scan = a_scan()
    flipped = Volume(scan.array[:, ::-1], scan.geometry)
    write_volume(path, flipped)
    assert_same(read_volume(path), flipped)


def test_the_same_volume_gives_the_same_bytes_at_another_time(folder, monkeypatch):
    clock = itertools.count(1_700_000_000, 3600)
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    for ending in (".nii.gz", ".seg.nrrd"):
        paths = [folder / f"{name}{ending}" for name in ("one", "two")]
        for path in paths:
            write_labels(path, a_label_map(), SEGMENTS)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_label_maps_are_packed_by_their_runs_into_smaller_files(folder):
    k, j, i = np.indices((40, 60, 60))
    ball = ((k - 20) / 18) ** 2 + ((j - 28) / 25) ** 2 + ((i - 31) / 22) ** 2 < 1
    labels = Volume(2 * ball.astype(np.uint8), Geometry((60, 60, 40), np.eye(4)))
    write_labels(folder / "runs.nii.gz", labels, SEGMENTS)
    packed = (folder / "runs.nii.gz").stat().st_size
    assert packed < 0.8 * len(gzip.compress(labels.array.tobytes(), 4))
    np.testing.assert_array_equal(read_labels(folder / "runs.nii.gz").array, labels.array)


def test_files_that_differ_in_their_ending_alone_are_not_confused(tmp_path):
    """ITK reads the voxels of scan.nii for scan.nii.gz."""
    grids = [oblique_left_handed((4, 5, 6)), oblique_left_handed((6, 5, 4))]
    grids += [Geometry((4, 5, 6), np.diag((2.0, 3.0, 4.0, 1.0)))]
    scans = [a_scan(grid, seed=n) for n, grid in enumerate(grids)]
    endings = (".nii.gz", ".nii", ".hdr")
    for ending, scan in zip(endings, scans, strict=True):
        write_volume(tmp_path / "new.nii", scan)
        if ending == ".hdr":
            sitk.WriteImage(sitk.ReadImage(str(tmp_path / "new.nii")), str(tmp_path / "scan.img"))
        else:
            write_volume(tmp_path / f"scan{ending}", scan)
    for ending, scan in zip(endings, scans, strict=True):
        assert_same(read_volume(tmp_path / f"scan{ending}"), scan)


def test_names_outside_ascii_work(tmp_path):
    for ending in [*FORMATS, ".seg.nrrd"]:
        path = tmp_path / "Zoë 肝臓" / f"Größe{ending}"
        path.parent.mkdir(exist_ok=True)
        write_labels(path, a_label_map(), SEGMENTS)
        assert_same(read_labels(path), a_label_map())


@pytest.mark.needs_data
def test_real_cases_are_left_handed_and_their_labels_lie_on_them(data_folder, folder):
    for dataset in ("Dataset102_AbdomenMR", "Dataset202_HeartLGE"):
        image = min((data_folder / dataset / "imagesTr").iterdir())
        label = data_folder / dataset / "labelsTr" / image.name.replace("_0000", "")
        scan, labels = read_volume(image), read_labels(label)
        assert scan.geometry.matches(labels.geometry)
        assert np.linalg.det(scan.geometry.direction) < 0
        write_volume(folder / "real.nii.gz", scan)
        assert_same(read_volume(folder / "real.nii.gz"), scan)


# --- where voxels lie, by others' reading


def test_nibabel_reads_our_affine(folder):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    write_volume(folder / "ours.nii.gz", a_scan())
    image = nibabel.load(folder / "ours.nii.gz")
    geometry = oblique_left_handed()
    for affine in (image.affine, image.get_qform(), image.get_sform()):
        np.testing.assert_allclose(affine, geometry.affine, atol=1e-5)
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, a_scan().array)


@settings(max_examples=40, deadline=None)
@given(geometry=geometries(max_shear=0.3), big_endian=st.booleans())
def test_we_read_nibabels_affine_sheared_or_not(geometry, big_endian, folder):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    scan = a_scan(geometry)
    header = nibabel.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(scan.array.T, geometry.affine, header)
    image.set_qform(None, 0)  # a sform alone, as registration tools leave it
    nibabel.save(image, folder / "theirs.nii.gz")
    assert_same(read_volume(folder / "theirs.nii.gz"), scan)


def test_scaled_voxels_and_metres_are_understood_with_sheared_axes_as_without(folder):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    for shear in (0.0, 0.1):
        affine = oblique_left_handed().affine.copy()
        affine[:3, 2] += shear * affine[:3, 1]
        metres = affine.copy()
        metres[:3] /= 1000
        image = nibabel.Nifti1Image(a_scan().array.T, metres)
        image.set_qform(None, 0)
        image.header.set_slope_inter(2.0, 5.0)
        image.header.set_xyzt_units("meter")
        nibabel.save(image, folder / "scaled.nii")
        stored = a_scan().array
        wanted = Volume(stored * 2.0 + 5.0, Geometry(oblique_left_handed().size, affine))
        assert_same(read_volume(folder / "scaled.nii"), wanted)


@pytest.mark.parametrize(
    ("layout", "at", "value"),
    [("<h", 40, 4), ("<f", 112, np.nan), ("<f", 112, 0.0)],
    ids=["a fourth axis of one", "scale not a number", "scale of zero"],
)
def test_oddities_of_nifti_headers_that_mean_nothing_are_passed_over(layout, at, value, folder):
    path = folder / "odd.nii"
    write_volume(path, a_scan())
    raw = bytearray(path.read_bytes())
    struct.pack_into(layout, raw, at, value)
    path.write_bytes(raw)
    assert_same(read_volume(path), a_scan())


def test_an_nrrd_in_ras_space_lies_where_it_says(folder):
    voxels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(4, 3, 2)
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 3 4\n"
        "space directions: (0,0.5,0) (2,0,0) (0,0,-3)\nkinds: domain domain domain\n"
        "encoding: raw\nspace origin: (10,-20,30)\n\n"
    )
    (folder / "ras.nrrd").write_bytes(header.encode() + voxels.tobytes())
    read = read_volume(folder / "ras.nrrd")
    affine = [[0, 2, 0, 10], [0.5, 0, 0, -20], [0, 0, -3, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(read.geometry.affine, affine)
    np.testing.assert_array_equal(read.array, voxels)


def test_an_nrrd_header_with_a_damaged_name_of_a_field_is_refused(folder):
    path = folder / "scan.nrrd"
    write_volume(path, a_scan())
    path.write_bytes(path.read_bytes().replace(b"\nspace origin:", b"\nspace orogin:", 1))
    with pytest.raises(VolumeError, match="unknown field, 'space orogin'"):
        read_volume(path)


# --- Slicer's segmentation file


def test_a_segmentation_file_carries_names_colours_and_terms(folder):
    path = folder / "organs.seg.nrrd"
    write_labels(path, a_label_map(), SEGMENTS)
    image = sitk.ReadImage(str(path))
    field = image.GetMetaData
    assert field("Segment0_Name") == "liver"
    assert field("Segment0_ID") == "Segment_1"
    assert field("Segment0_Color") == "0.866667 0.509804 0.396078"
    assert field("Segment0_Extent") == "0 6 0 4 0 3"
    assert field("Segment0_Layer") == field("Segment2_Layer") == "0"
    assert field("Segment2_LabelValue") == "5"
    assert field("Segment2_Name") == "Blob é"
    assert field("Segment1_Tags") == f"TerminologyEntry:{terminology_entry(SEGMENTS[1])}|"
    assert field("Segmentation_MasterRepresentation") == "Binary labelmap"
    assert field("Segmentation_ReferenceImageExtentOffset") == "0 0 0"
    assert not image.HasMetaDataKey("Segment3_ID")


@pytest.mark.needs_slicer
def test_slicer_opens_the_segmentation_file_as_a_segmentation(tmp_path):
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    path = tmp_path / "Zoë.seg.nrrd"
    labels = a_label_map()
    labels.array[labels.array == 2] = 0  # an organ that was not found is listed all the same
    write_labels(path, labels, SEGMENTS)

    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1

    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == len(SEGMENTS)
    assert segmentation.GetNumberOfLayers() == 1
    reference = segmentation.GetConversionParameter("Reference image geometry")
    numbers = [float(x) for x in reference.strip(";").split(";")]
    np.testing.assert_allclose(np.reshape(numbers[:16], (4, 4)), labels.geometry.affine)
    assert numbers[16:] == [0, 6, 0, 4, 0, 3]

    terminologies = slicer.vtkSlicerTerminologiesModuleLogic()
    for n, wanted in enumerate(SEGMENTS):
        segment = segmentation.GetNthSegment(n)
        assert segment.GetName() == wanted.name.replace("_", " ")
        assert segment.GetLabelValue() == wanted.value
        assert not segment.GetNameAutoGenerated()
        assert not segment.GetColorAutoGenerated()
        np.testing.assert_allclose(np.array(segment.GetColor()) * 255, wanted.color, atol=1e-3)

        tag = vtk.reference("")
        assert segment.GetTag("TerminologyEntry", tag)
        entry = slicer.vtkSlicerTerminologyEntry()
        terminologies.DeserializeTerminologyEntry(str(tag), entry)
        assert entry.GetTypeObject().GetCodeValue() == wanted.terminology.type.value
        side = wanted.terminology.modifier
        assert (entry.GetTypeModifierObject().GetCodeMeaning() or None) == (side and side.meaning)
        assert terminologies.SerializeTerminologyEntry(entry) == terminology_entry(wanted)

        image = segment.GetRepresentation("Binary labelmap")
        ijk_to_ras = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(ijk_to_ras)
        affine = [[ijk_to_ras.GetElement(i, j) for j in range(4)] for i in range(4)]
        np.testing.assert_allclose(affine, labels.geometry.affine, atol=1e-9)
        voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(labels.array.shape)
        np.testing.assert_array_equal(voxels == wanted.value, labels.array == wanted.value)


# --- DICOM


def write_series(
    folder, uid="1.2.826.1", geometry=None, name="CT abdomen", skip=(), shift=0.0
) -> Volume:
    """A series with file names in reverse order; `shift` mm per slice along I tilts the gantry."""
    scan = a_scan(geometry or oblique_left_handed((4, 5, 6)))
    lps = np.diag((-1, -1, 1, 1)) @ scan.geometry.affine
    lps[:3, 2] += shift * lps[:3, 0] / scan.geometry.spacing[0]
    scan = Volume(scan.array, Geometry(scan.geometry.size, np.diag((-1, -1, 1, 1)) @ lps))
    rows = (lps[:3, :2] / scan.geometry.spacing[:2]).T.ravel()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, pixels in enumerate(scan.array):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(pixels)
        image.SetSpacing(scan.geometry.spacing[:2].tolist())
        position = lps[:3, 3] + k * lps[:3, 2]
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{k + 1}",
            "0008|0060": "CT",
            "0008|103e": name,
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{x:.8f}" for x in position),
            "0020|0037": "\\".join(f"{x:.10f}" for x in rows),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }.items():
            image.SetMetaData(tag, value)
        folder.mkdir(parents=True, exist_ok=True)
        writer.SetFileName(str(folder / f"{uid}-{99 - k}.dcm"))
        writer.Execute(image)
    return scan


def in_scanner_order(scan: Volume) -> Volume:
    """GDCM lays slices along the normal of their rows and columns: right-handed grids."""
    affine = scan.geometry.affine.copy()
    if np.linalg.det(affine[:3, :3]) > 0:
        return scan
    affine[:3, 3] = scan.geometry.to_ras((0, 0, scan.geometry.size[2] - 1))
    affine[:3, 2] *= -1
    return Volume(scan.array[::-1], Geometry(scan.geometry.size, affine))


def test_a_dicom_series_is_read_in_the_order_of_its_positions(tmp_path):
    written = write_series(tmp_path / "Größe")
    assert_same(read_volume(tmp_path / "Größe"), in_scanner_order(written))


def test_a_tilted_gantry_gives_sheared_axes(tmp_path):
    written = write_series(tmp_path, shift=0.3)
    assert_same(read_volume(tmp_path), in_scanner_order(written))


def test_a_folder_with_several_series_asks_for_one_and_names_them(tmp_path):
    write_series(tmp_path, "1.2.826.1", name="T2 SPIR")
    geometry = Geometry((4, 5, 3), np.diag((1.0, 1.0, 4.0, 1.0)))
    second = write_series(tmp_path, "1.2.826.2", geometry, name="localiser")
    with pytest.raises(VolumeError, match=r"1\.2\.826\.1 \(T2 SPIR, 6 files\)\n.*\(localiser, 3"):
        read_volume(tmp_path)
    read = read_volume(tmp_path, series_uid="1.2.826.2")
    assert_same(read, in_scanner_order(second))
    with pytest.raises(VolumeError, match=r"no series 1\.9, but:\n- 1\.2\.826\.1"):
        read_volume(tmp_path, series_uid="1.9")
    assert_same(read_volume(tmp_path, series_uid="localiser"), in_scanner_order(second))


def test_series_of_one_name_are_told_apart_by_their_studies(tmp_path):
    from dicom_series import write_slices

    scan = a_scan(oblique_left_handed((4, 5, 3)))
    uids = [write_slices(tmp_path / str(n), scan, "T2 axial") for n in range(2)]
    for path in (tmp_path / "1").iterdir():
        path.rename(tmp_path / "0" / f"more-{path.name}")
    for name in (None, "T2 axial"):
        with pytest.raises(VolumeError) as error:
            read_volume(tmp_path / "0", name)
        lines = str(error.value).splitlines()[1:]
        told = "(T2 axial, 3 files) in study Phantom study, 20260102"
        assert sorted(lines) == sorted(f"- {uid} {told}" for uid in uids)
    assert read_volume(tmp_path / "0", uids[1]).array.shape == scan.array.shape


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_a_missing_slice_is_noticed(tmp_path, missing):
    write_series(tmp_path, skip=(missing,))
    with pytest.raises(VolumeError, match="evenly spaced"):
        read_volume(tmp_path)


def test_a_folder_without_dicom_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(VolumeError, match="no DICOM series"):
        read_volume(tmp_path)


# --- bad input


def sentence(error) -> str:
    """The message, checked to be a single line."""
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(ending, kept, tmp_path):
    path = tmp_path / f"cut{ending}"
    write_volume(path, a_scan(oblique_left_handed((30, 31, 32))))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(VolumeError, match="empty" if kept == 0 else "cut") as error:
        read_volume(path)
    assert str(path) in sentence(error)


@pytest.mark.parametrize("lost", [1, 4, 8, 9])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha"])
def test_a_file_that_lacks_its_last_bytes_is_refused(ending, lost, tmp_path):
    path = tmp_path / f"cut{ending}"
    write_volume(path, a_scan())
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(VolumeError, match="is truncated" if ending == ".nii" else "cut"):
        read_volume(path)


def test_a_damaged_nifti_is_refused_by_its_checksum(tmp_path):
    path = tmp_path / "damaged.nii.gz"
    write_volume(tmp_path / "whole.nii", a_scan())
    raw = (tmp_path / "whole.nii").read_bytes()
    damaged = bytearray(gzip.compress(raw, compresslevel=0))
    damaged[-100] ^= 1  # stored, not compressed: only the sum can tell
    path.write_bytes(damaged)
    with pytest.raises(VolumeError, match=r"is damaged \(incorrect data check\)"):
        read_volume(path)


def test_a_header_whose_voxels_are_elsewhere_and_missing_is_refused(tmp_path):
    for ending in (".nhdr", ".mhd"):
        path = tmp_path / f"detached{ending}"
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkInt16), str(path))
        assert read_volume(path).array.shape == (6, 5, 4)
        (tmp_path / "detached.raw").unlink()
        with pytest.raises(VolumeError, match="detached"):
            read_volume(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_text_with_the_name_of_a_scan_is_refused(ending, tmp_path):
    path = tmp_path / f"page{ending}"
    path.write_text("<html>404 not found</html>" * 100)
    with pytest.raises(VolumeError, match="page"):
        read_volume(path)


def test_a_file_that_is_not_there_or_of_another_kind_is_named(tmp_path):
    with pytest.raises(VolumeError, match=r"no file or folder .*absent"):
        read_volume(tmp_path / "absent.nii.gz")
    (tmp_path / "picture.png").write_bytes(b"PNG")
    with pytest.raises(VolumeError, match=r"\.nii\.gz"):
        read_volume(tmp_path / "picture.png")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (lambda: sitk.Image([4, 5], sitk.sitkInt16), r"2-D \(4 x 5\)"),
        (lambda: sitk.Image([4, 5, 6, 7], sitk.sitkInt16), r"4-D \(4 x 5 x 6 x 7\)"),
        (lambda: sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), "one number a voxel"),
        (lambda: sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), "one number a voxel"),
    ],
    ids=["2-D", "4-D", "colour", "complex"],
)
def test_what_is_not_one_volume_is_refused(ending, image, complaint, tmp_path):
    if ending == ".nrrd" and "complex" in image().GetPixelIDTypeAsString():
        pytest.skip("ITK writes no complex NRRD")
    path = tmp_path / f"odd{ending}"
    sitk.WriteImage(image(), str(path))
    with pytest.raises(VolumeError, match=complaint) as error:
        read_volume(path)
    assert str(path) in sentence(error)


def test_float_labels_are_taken_where_they_are_whole(tmp_path):
    labels = a_label_map()
    path = tmp_path / "labels.nii.gz"
    write_volume(path, Volume(labels.array.astype(np.float32) + 1e-6, labels.geometry))
    read = read_labels(path)
    assert read.array.dtype == np.int32
    assert_same(read, labels)


@pytest.mark.parametrize("odd", [0.5, np.nan, np.inf, 1e12])
def test_float_labels_that_are_not_whole_are_refused(odd, tmp_path):
    labels = a_label_map().array.astype(np.float32)
    labels[3, 2, 1] = odd
    write_volume(tmp_path / "labels.nrrd", Volume(labels, oblique_left_handed()))
    with pytest.raises(VolumeError, match="whole numbers"):
        read_labels(tmp_path / "labels.nrrd")


# --- writing that fails


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (lambda array: array.astype(float), "float64"),
        (lambda array: np.where(array == 5, 3, array), "value 3"),
        (lambda array: np.where(array == 5, -1, array), "value -1"),
        (lambda array: np.where(array == 5, 70_000, array), "65535"),
    ],
    ids=["float", "no segment", "negative", "too large"],
)
@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd"])
def test_labels_that_a_file_cannot_hold_are_refused(ending, array, complaint, tmp_path):
    labels = Volume(array(a_label_map().array), oblique_left_handed())
    segments = (*SEGMENTS, segment_for("far", 70_000))
    with pytest.raises(VolumeError, match=complaint):
        write_labels(tmp_path / f"labels{ending}", labels, segments)
    assert not list(tmp_path.iterdir())


def test_a_scan_of_bits_or_with_a_foolish_name_is_refused(tmp_path):
    for path, dtype, complaint in (
        (tmp_path / "a.nii.gz", bool, "bool"),
        (tmp_path / "a.seg.nrrd", np.int16, "segmentation"),
        (tmp_path / "a.nhdr", np.int16, r"\.nii\.gz"),
        (tmp_path / "a", np.int16, r"\.nii\.gz"),
    ):
        with pytest.raises(VolumeError, match=complaint):
            write_volume(path, a_scan(dtype=dtype))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [*FORMATS, ".seg.nrrd"])
@pytest.mark.parametrize("room", [0, 100, 0.5, -1])
@pytest.mark.parametrize("shape", [(31, 32, 33), (4, 5, 6)])
def test_a_full_disk_loses_nothing_and_leaves_nothing(ending, room, shape, tmp_path):
    """Also a file that is so small that it is written when it is closed."""
    resource = pytest.importorskip("resource", reason="limits of file size are a POSIX matter")
    path = tmp_path / f"labels{ending}"
    write_labels(path, a_label_map(oblique_left_handed((30, 31, 32))), SEGMENTS)
    before = path.read_bytes()
    other = a_label_map(oblique_left_handed(shape))
    write_labels(tmp_path / f"size{ending}", other, SEGMENTS)
    size = (tmp_path / f"size{ending}").stat().st_size
    (tmp_path / f"size{ending}").unlink()

    room = int(room * size) if isinstance(room, float) else size - 1 if room < 0 else room
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # writes beyond fail as if full
    try:
        with pytest.raises(VolumeError, match="could not be written") as error:
            write_labels(path, other, SEGMENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in sentence(error)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_folder_that_is_missing_or_a_file_is_named(ending, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for parent in ("absent", "file"):
        with pytest.raises(VolumeError, match=f"{parent}.*folder exists") as error:
            write_volume(tmp_path / parent / f"scan{ending}", a_scan())
        assert sentence(error)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(VolumeError, match="Permission denied"):
        write_volume(tmp_path / "scan.nii.gz", a_scan())


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = tmp_path / "scan.nii.gz"
    write_volume(path, a_scan())
    monkeypatch.setattr(atomic.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_volume(path, a_scan(seed=3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert_same(read_volume(path), a_scan())


# --- several volumes in a file


def a_cine(frames=3):
    geometry = oblique_left_handed((4, 5, 6))
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 900, (frames, *geometry.shape)).astype(np.int16)
    return Frames(tuple(Volume(array, geometry) for array in arrays), 0.04)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_frames_come_back_each_on_the_grid(tmp_path, suffix):
    cine, path = a_cine(), tmp_path / f"cine{suffix}"
    write_frames(path, cine)
    read = read_frames(path)
    assert read.interval == pytest.approx(0.04)
    assert len(read.volumes) == 3
    for found, written in zip(read.volumes, cine.volumes, strict=True):
        assert_same(found, written)
    image = sitk.ReadImage(str(path))
    assert image.GetDimension() == 4
    expected = np.stack([volume.array for volume in cine.volumes])
    assert np.array_equal(sitk.GetArrayFromImage(image), expected)
    assert image.GetSpacing()[3] == pytest.approx(0.04)
    with pytest.raises(VolumeError, match=r"4-D \(4 x 5 x 6 x 3\)"):
        read_volume(path)


def test_the_interval_is_in_seconds_whatever_the_file_counts_in(tmp_path):
    path = tmp_path / "cine.nii"
    write_frames(path, a_cine())
    raw = bytearray(path.read_bytes())
    for code, seconds in ((8, 0.04), (16, 40e-6), (24, 40e-9), (0, 0.04), (32, 0)):
        raw[123] = 2 + code  # 32: Hz
        path.write_bytes(raw)
        assert read_frames(path).interval == pytest.approx(seconds)


def test_a_name_without_a_file_is_told_as_such_whatever_its_ending(tmp_path):
    for name in ("scan", "scan.dcm", "scan.nii"):
        with pytest.raises(VolumeError, match=f"There is no file or folder .*{name}"):
            read_volume(tmp_path / name)


def test_label_frames_have_the_smallest_type_and_known_labels(tmp_path):
    cine = a_cine(2)
    labels = [replace(v, array=(v.array > 450).astype(np.int32)) for v in cine.volumes]
    frames = Frames(tuple(labels), 0.04)
    write_label_frames(tmp_path / "organs.nii.gz", frames, [segment_for("liver", 1)])
    read = read_frames(tmp_path / "organs.nii.gz")
    assert {volume.array.dtype.name for volume in read.volumes} == {"uint8"}
    for found, written in zip(read.volumes, labels, strict=True):
        assert np.array_equal(found.array, written.array)
    with pytest.raises(VolumeError, match="no segment has the value 1"):
        write_label_frames(tmp_path / "organs.nii.gz", frames, [segment_for("liver", 2)])
    with pytest.raises(VolumeError, match="cannot hold 2 volumes"):
        write_label_frames(tmp_path / "organs.seg.nrrd", frames, [segment_for("liver", 1)])


def test_a_cine_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "cine.nii"
    write_frames(path, a_cine())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(VolumeError, match="truncated"):
        read_frames(path)


def test_a_single_volume_is_a_single_frame(tmp_path):
    scan = a_scan()
    write_frames(tmp_path / "scan.nii.gz", Frames((scan,)))
    (found,) = read_frames(tmp_path / "scan.nii.gz").volumes
    assert_same(found, scan)
    write_volume(tmp_path / "scan.nrrd", scan)
    (found,) = read_frames(tmp_path / "scan.nrrd").volumes
    assert_same(found, scan)


@pytest.mark.parametrize(
    "name", ["liver\n\nx", "liver\nsizes: 1 1 1", "liver\rSegment0_LabelValue:=9", "\ud800", "a\0"]
)
def test_a_name_that_would_break_the_header_is_refused(tmp_path, name):
    path = tmp_path / "a.seg.nrrd"
    labels = Volume(np.ones((2, 2, 2), np.uint8), Geometry((2, 2, 2), np.eye(4)))
    with pytest.raises(VolumeError, match=r"a\.seg\.nrrd could not be written: the name"):
        write_labels(path, labels, [segment_for(name, 1)])
    assert list(tmp_path.iterdir()) == []
