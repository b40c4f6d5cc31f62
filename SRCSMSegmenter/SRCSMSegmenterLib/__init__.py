# SPDX-License-Identifier: Apache-2.0
"""The computing behind SRCSMSegmenter: plain arrays and geometries, Slicer in scene, panel."""

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

__all__ = [*PUBLIC]
__getattr__, __dir__ = public_names(__name__, PUBLIC)
