# SPDX-License-Identifier: Apache-2.0
"""Small synthetic DICOM series that keep to the standard: single slices, and Enhanced MR."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from SRCSMSegmenterLib.geometry import Volume

LPS = np.diag((-1.0, -1.0, 1.0, 1.0))


def write_slices(folder: Path, scan: Volume, description: str = "CT abdomen") -> str:
    """Write a CT series, a file a slice, named against their order; return its UID.

    Args:
        scan: intensities from -1024, (K, J, I).
    """
    folder.mkdir(parents=True, exist_ok=True)
    affine, spacing = LPS @ scan.geometry.affine, scan.geometry.spacing
    common = _patient(CTImageStorage, "CT", description)
    common.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    common.KVP, common.AcquisitionNumber = "120", "1"
    for k, pixels in enumerate(scan.array):
        image = Dataset()
        image.update(common)
        image.SOPInstanceUID, image.InstanceNumber = generate_uid(), str(k + 1)
        image.ImagePositionPatient = _numbers(affine[:3, 3] + k * affine[:3, 2])
        image.ImageOrientationPatient = _rows(affine, spacing)
        image.PixelSpacing, image.SliceThickness = (
            _numbers(spacing[1::-1]),
            _numbers(spacing[2:])[0],
        )
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "-1024", "1", "HU"
        _set_pixels(image, (pixels.astype(np.int32) + 1024).astype(np.uint16))
        _save(image, folder / f"{len(scan.array) - k}.dcm")
    return common.SeriesInstanceUID


def write_enhanced(folder: Path, scan: Volume, description: str = "T2 axial") -> str:
    """Write an Enhanced MR object, all slices in one file; return the UID of its series."""
    folder.mkdir(parents=True, exist_ok=True)
    affine, spacing = LPS @ scan.geometry.affine, scan.geometry.spacing
    image = _patient(EnhancedMRImageStorage, "MR", description)
    image.ImageType = ["ORIGINAL", "PRIMARY", "OTHER", "NONE"]
    image.SOPInstanceUID, image.InstanceNumber = generate_uid(), "1"
    image.NumberOfFrames = str(len(scan.array))
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = (
        _numbers(spacing[1::-1]),
        _numbers(spacing[2:])[0],
    )
    orientation.ImageOrientationPatient = _rows(affine, spacing)
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in range(len(scan.array)):
        position, content, frame = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = _numbers(affine[:3, 3] + k * affine[:3, 2])
        content.StackID, content.InStackPositionNumber = "1", k + 1
        content.DimensionIndexValues = [1, k + 1]
        frame.PlanePositionSequence = Sequence([position])
        frame.FrameContentSequence = Sequence([content])
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    _set_pixels(image, scan.array.astype(np.uint16))
    _save(image, folder / "enhanced.dcm")
    return image.SeriesInstanceUID


def _patient(sop_class: str, modality: str, description: str) -> Dataset:
    """Return the attributes of patient, study and series."""
    data = Dataset()
    data.SOPClassUID, data.Modality = sop_class, modality
    data.PatientName, data.PatientID = "Phantom^A", "P1"
    data.PatientBirthDate, data.PatientSex = "19700101", "O"
    data.StudyInstanceUID, data.StudyID, data.StudyDate = generate_uid(), "1", "20260102"
    data.StudyTime, data.AccessionNumber, data.ReferringPhysicianName = "101500", "", ""
    data.StudyDescription, data.SeriesDescription = "Phantom study", description
    data.SeriesInstanceUID, data.SeriesNumber = generate_uid(), "3"
    data.ContentDate, data.ContentTime = "20260102", "101600"
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = generate_uid(), ""
    data.PatientPosition, data.Manufacturer, data.Laterality = "HFS", "None", ""
    return data


def _set_pixels(image: Dataset, pixels: np.ndarray) -> None:
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelData = pixels.tobytes()


def _save(image: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta = meta
    image.save_as(path, enforce_file_format=True)


def _rows(affine: np.ndarray, spacing: np.ndarray) -> list[str]:
    return _numbers((affine[:3, :2] / spacing[:2]).T.ravel())


def _numbers(values: np.ndarray) -> list[str]:
    """Write decimal strings, which have at most 16 characters."""
    return [f"{value:.12f}"[:16] for value in values]
