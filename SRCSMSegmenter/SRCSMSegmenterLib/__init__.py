# SPDX-License-Identifier: Apache-2.0
"""The computing behind SRCSMSegmenter: plain arrays and geometries, Slicer in scene, panel."""

import sys
from typing import TYPE_CHECKING

if sys.version_info < (3, 11):  # noqa: UP036 - Slicer does not read pyproject.toml
    raise ImportError(
        "SRCSM needs Python 3.11 or newer, which 3D Slicer 5.12 and newer have; this is Python "
        f"{sys.version_info[0]}.{sys.version_info[1]}."
    )

from .public_names import public_names

PUBLIC = {
    "Geometry": "geometry",
    "InputError": "errors",
    "IntensityRule": "intensity",
    "ModelBundle": "models.bundle",
    "SRCSMError": "errors",
    "Segmentation": "inference",
    "SourceHistogram": "source_matching",
    "Volume": "geometry",
    "find_model": "models.catalogue",
    "load_bundle": "models.bundle",
    "match_to_source": "source_matching",
    "read_labels": "volume_io",
    "read_volume": "volume_io",
    "segment": "inference",
    "segment_file": "file_segmentation",
    "write_labels": "volume_io",
    "write_volume": "volume_io",
}
"""Public names, and the module of each; they are imported when they are asked for."""

if TYPE_CHECKING:  # the same names for type checkers, which do not see `__getattr__`'s
    from .errors import InputError as InputError
    from .errors import SRCSMError as SRCSMError
    from .file_segmentation import segment_file as segment_file
    from .geometry import Geometry as Geometry
    from .geometry import Volume as Volume
    from .inference import Segmentation as Segmentation
    from .inference import segment as segment
    from .intensity import IntensityRule as IntensityRule
    from .models.bundle import ModelBundle as ModelBundle
    from .models.bundle import load_bundle as load_bundle
    from .models.catalogue import find_model as find_model
    from .source_matching import SourceHistogram as SourceHistogram
    from .source_matching import match_to_source as match_to_source
    from .volume_io import read_labels as read_labels
    from .volume_io import read_volume as read_volume
    from .volume_io import write_labels as write_labels
    from .volume_io import write_volume as write_volume

__all__ = [*PUBLIC]
__getattr__, __dir__ = public_names(__name__, PUBLIC)
