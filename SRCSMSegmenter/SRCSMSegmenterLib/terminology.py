# SPDX-License-Identifier: Apache-2.0
"""Terms (SNOMED CT) and colours of labels as 3D Slicer and DICOM know them.

Codes and colours are those of Slicer's "3D Slicer General Anatomy list" and, for terms that list
lacks, of its "DICOM master list" (Modules/Loadable/Terminologies/Resources in Slicer's sources).
"""

import colorsys
import re
from dataclasses import dataclass

_GENERAL_ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"
_DICOM_MASTER = "Segmentation category and type - DICOM master list"


@dataclass(frozen=True)
class Code:
    """A coded concept; `scheme` SCT is SNOMED CT."""

    value: str
    meaning: str
    scheme: str = "SCT"

    def __str__(self) -> str:
        return f"{self.scheme}^{self.value}^{self.meaning}"


@dataclass(frozen=True)
class Terminology:
    """Meaning of a segment: a category, a type within it, and for paired organs the side.

    Attributes:
        context: name of Slicer's list of terms that holds the type.
    """

    category: Code
    type: Code
    modifier: Code | None = None
    context: str = _GENERAL_ANATOMY


@dataclass(frozen=True)
class Segment:
    """One label of a label map: its name, its voxel value, its colour (RGB, 0-255), its meaning."""

    name: str
    value: int
    color: tuple[int, int, int]
    terminology: Terminology


_TISSUE = Code("85756007", "Tissue")
_STRUCTURE = Code("123037004", "Anatomical Structure")
_RIGHT = Code("24028007", "Right")
_LEFT = Code("7771000", "Left")

_GENERIC = Terminology(_TISSUE, _TISSUE)
_ADRENAL = Code("23451007", "Adrenal gland")
_KIDNEY = Code("64033007", "Kidney")


def _structure(
    code: str, meaning: str, context: str = _GENERAL_ANATOMY, modifier: Code | None = None
) -> Terminology:
    return Terminology(_STRUCTURE, Code(code, meaning), modifier, context)


# name -> (terminology, colour). Slicer gives both kidneys one colour, by which nobody could see
# that they were swapped: the left one's is our own. Neither list gives a colour for the last four;
# theirs are the aorta's, an artery's and the lumbar spine's, and one of our own that sets the
# myocardium off from the ventricles. No list of Slicer's holds the myocardium; its code is SNOMED
# CT's.
_KNOWN: dict[str, tuple[Terminology, tuple[int, int, int]]] = {
    "liver": (_structure("10200004", "Liver"), (221, 130, 101)),
    "kidney": (Terminology(_STRUCTURE, _KIDNEY), (185, 102, 83)),
    "right kidney": (Terminology(_STRUCTURE, _KIDNEY, _RIGHT), (185, 102, 83)),
    "left kidney": (Terminology(_STRUCTURE, _KIDNEY, _LEFT), (212, 164, 74)),
    "spleen": (_structure("78961009", "Spleen"), (157, 108, 162)),
    "pancreas": (_structure("15776009", "Pancreas"), (249, 180, 111)),
    "stomach": (_structure("69695003", "Stomach"), (216, 132, 105)),
    "gallbladder": (_structure("28231008", "Gallbladder"), (139, 150, 98)),
    "esophagus": (_structure("32849002", "Esophagus"), (211, 171, 143)),
    "duodenum": (_structure("38848004", "Duodenum"), (255, 253, 229)),
    "small bowel": (_structure("30315005", "Small Intestine"), (205, 167, 142)),
    "adrenal gland": (Terminology(_STRUCTURE, _ADRENAL), (249, 186, 150)),
    "right adrenal gland": (Terminology(_STRUCTURE, _ADRENAL, _RIGHT), (249, 186, 150)),
    "left adrenal gland": (Terminology(_STRUCTURE, _ADRENAL, _LEFT), (249, 186, 150)),
    "bladder": (_structure("89837001", "Bladder"), (222, 154, 132)),
    "prostate": (_structure("41216001", "Prostate"), (230, 158, 140)),
    "aorta": (_structure("15825003", "Aorta"), (224, 97, 76)),
    "left ventricle": (_structure("87878005", "Left Ventricle"), (152, 55, 13)),
    "right ventricle": (_structure("53085002", "Right Ventricle"), (181, 85, 57)),
    "left atrium": (_structure("82471001", "Left atrium", _DICOM_MASTER), (203, 108, 81)),
    "right atrium": (_structure("73829009", "Right atrium", _DICOM_MASTER), (210, 115, 89)),
    "pulmonary artery": (
        _structure("81040000", "Pulmonary artery", _DICOM_MASTER),
        (0, 122, 171),
    ),
    "ascending aorta": (_structure("54247002", "Ascending aorta", _DICOM_MASTER), (224, 97, 76)),
    "vessels": (_structure("59820001", "Blood Vessel", _DICOM_MASTER), (216, 101, 79)),
    "spine": (_structure("421060004", "Spine", _DICOM_MASTER), (212, 188, 102)),
    "myocardium": (_structure("74281007", "Myocardium", _DICOM_MASTER), (240, 205, 120)),
}

_SYNONYMS = {
    "oesophagus": "esophagus",
    "urinary bladder": "bladder",
    "gall bladder": "gallbladder",
    "lv": "left ventricle",
    "rv": "right ventricle",
    "la": "left atrium",
    "ra": "right atrium",
    "myo": "myocardium",
    "pa": "pulmonary artery",
}


def name_key(name: str) -> tuple[str, ...]:
    """Return the words of a name without their order, case and separators.

    Names of one organ have one key: "right_kidney", "Right kidney" and "kidney_right".
    """
    return tuple(sorted(re.findall(r"[^\W_]+", name.lower())))


_BY_KEY = {name_key(name): entry for name, entry in _KNOWN.items()} | {
    name_key(short): _KNOWN[name] for short, name in _SYNONYMS.items()
}


def readable(name: str) -> str:
    """Write a label's name as scenes, files and panels do: "right_kidney" is "right kidney"."""
    return name.replace("_", " ")


def segment_for(name: str, value: int) -> Segment:
    """Look up a label by its name, or by another name with the same `name_key`.

    A name that is not known keeps its name, means "Tissue" and gets a colour of its own, which
    depends on `value` alone.
    """
    if known := _BY_KEY.get(name_key(name)):
        terminology, color = known
    else:
        terminology, color = _GENERIC, _spread_color(value)
    return Segment(name, value, color, terminology)


def meaning(name: str) -> Terminology | tuple[str, ...]:
    """Return what names of the same structure share: its term or, if it has none, its words."""
    known = _BY_KEY.get(name_key(name))
    return known[0] if known else name_key(name)


def terminology_entry(segment: Segment) -> str:
    """Write the value of the segment tag `TerminologyEntry` as Slicer does.

    Fields, separated by ~: context, category, type, modifier, and an anatomic region, which
    anatomical structures do not have. Codes are scheme^value^meaning.
    """
    terms = segment.terminology
    modifier = terms.modifier or "^^"
    region = "Anatomic codes - DICOM master list~^^~^^"
    return f"{terms.context}~{terms.category}~{terms.type}~{modifier}~{region}"


def _spread_color(value: int) -> tuple[int, int, int]:
    # Steps of the golden ratio never come close to an earlier hue for long.
    hue = value * 0.618033988749895 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.7, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)
