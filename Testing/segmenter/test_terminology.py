# SPDX-License-Identifier: Apache-2.0
"""Names become SNOMED CT terms and colours as Slicer has them."""

import itertools

import pytest

from SRCSMSegmenterLib.terminology import segment_for, terminology_entry

GENERAL = "Segmentation category and type - 3D Slicer General Anatomy list"
REGION = "Anatomic codes - DICOM master list~^^~^^"

# Read off Slicer's SegmentationCategoryTypeModifier-SlicerGeneralAnatomy.json (first part) and
# -DICOM-Master.json; the last two from SNOMED CT.
CODES = {
    "liver": ("10200004", (221, 130, 101)),
    "right_kidney": ("64033007", (185, 102, 83)),
    "left_kidney": ("64033007", (212, 164, 74)),  # our own: Slicer gives both kidneys one
    "spleen": ("78961009", (157, 108, 162)),
    "pancreas": ("15776009", (249, 180, 111)),
    "prostate": ("41216001", (230, 158, 140)),
    "aorta": ("15825003", (224, 97, 76)),
    "left_ventricle": ("87878005", (152, 55, 13)),
    "right_ventricle": ("53085002", (181, 85, 57)),
    "left_atrium": ("82471001", (203, 108, 81)),
    "right_atrium": ("73829009", (210, 115, 89)),
    "pulmonary_artery": ("81040000", (0, 122, 171)),
    "ascending_aorta": ("54247002", None),
    "vessels": ("59820001", None),
    "spine": ("421060004", None),
    "myocardium": ("74281007", None),
}


@pytest.mark.parametrize("name", CODES)
def test_organs_have_their_snomed_code_and_slicers_colour(name):
    segment = segment_for(name, 3)
    code, color = CODES[name]
    assert (segment.name, segment.value) == (name, 3)
    assert segment.terminology.type.value == code
    assert segment.terminology.category.value == "123037004"
    assert color is None or segment.color == color


def test_the_entry_of_a_paired_organ_is_what_slicer_writes():
    assert terminology_entry(segment_for("right_kidney", 2)) == (
        f"{GENERAL}~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^24028007^Right~"
        f"{REGION}"
    )
    assert "~SCT^7771000^Left~" in terminology_entry(segment_for("left_kidney", 3))


def test_the_entry_of_an_unpaired_organ_has_an_empty_side():
    assert terminology_entry(segment_for("liver", 1)) == (
        f"{GENERAL}~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~{REGION}"
    )


@pytest.mark.parametrize(
    "name", ["right_kidney", "Right kidney", "kidney_right", "KIDNEY-RIGHT", "kidney, right"]
)
def test_spellings_of_one_organ_mean_the_same_and_keep_their_name(name):
    segment = segment_for(name, 2)
    assert segment.name == name
    assert segment.terminology == segment_for("right_kidney", 2).terminology


def test_short_names_of_the_heart_are_known():
    assert segment_for("LV", 2).terminology == segment_for("left_ventricle", 2).terminology
    assert segment_for("MYO", 1).terminology == segment_for("myocardium", 1).terminology


@pytest.mark.parametrize("name", ["blob", "", "kidney tumour", "left liver", "肝臓"])
def test_an_unknown_name_is_tissue_and_keeps_its_name(name):
    segment = segment_for(name, 5)
    assert segment.name == name
    assert terminology_entry(segment) == (
        f"{GENERAL}~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~{REGION}"
    )


def test_unknown_labels_of_one_map_are_told_apart_by_colour():
    colors = [segment_for("blob", value).color for value in range(1, 21)]
    assert all(0 <= channel <= 255 for color in colors for channel in color)
    for one, other in itertools.combinations(colors, 2):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) >= 20
    assert segment_for("other", 7).color == segment_for("blob", 7).color
