# SPDX-License-Identifier: Apache-2.0
"""A program that decodes a DICOM file's pixels with GDCM and writes them to standard output."""

import sys

import SimpleITK as sitk

if __name__ == "__main__":
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(sys.argv[1])
    sys.stdout.buffer.write(sitk.GetArrayFromImage(reader.Execute()).data)
