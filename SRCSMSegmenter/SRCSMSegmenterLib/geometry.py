# SPDX-License-Identifier: Apache-2.0
"""Voxel grids in patient space: that of a volume, and that of a network's input."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .errors import VolumeError

CLEARLY_COARSER = 1.2
"""An axis is that of the slices if its spacing is so many times that of both others."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in patient space.

    Attributes:
        size: number of voxels along (I, J, K); arrays on this grid have shape (K, J, I).
        affine: 4x4 float64, voxel index (i, j, k) -> RAS mm. Any spacing, shear-free or not,
            left- or right-handed.

    Raises:
        VolumeError: wrong shape, non-finite or singular affine, empty size.
    """

    size: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise VolumeError(
                f"A geometry needs a finite 4x4 affine, got {' '.join(map(str, affine.ravel()))}."
            )
        if affine[3].tolist() != [0, 0, 0, 1]:
            raise VolumeError(f"The last row of an affine is 0 0 0 1, got {affine[3]}.")
        # Relative to the spacings, so that neither micrometres nor metres decide.
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        if abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * edges.prod():
            raise VolumeError("The affine is singular: two voxel axes coincide or a spacing is 0.")
        size = tuple(int(n) for n in self.size)
        if len(size) != 3 or min(size) < 1:
            raise VolumeError(f"A volume has three axes of at least one voxel, got size {size}.")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "size", size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (K, J, I)."""
        return self.size[::-1]

    @cached_property
    def spacing(self) -> np.ndarray:
        """Voxel edge lengths along (I, J, K) in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def direction(self) -> np.ndarray:
        """3x3, columns are the unit vectors of the I, J and K axes in RAS."""
        return self.affine[:3, :3] / self.spacing

    @cached_property
    def inverse(self) -> np.ndarray:
        """4x4, RAS mm -> voxel index (i, j, k)."""
        return np.linalg.inv(self.affine)

    @property
    def centre(self) -> np.ndarray:
        """(3,) RAS mm of the middle of the grid."""
        return self.to_ras((np.array(self.size) - 1) / 2)

    def to_ras(self, ijk: np.ndarray) -> np.ndarray:
        """Convert (..., 3) voxel indices (i, j, k) to RAS mm."""
        return np.asarray(ijk) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_ijk(self, ras: np.ndarray) -> np.ndarray:
        """Convert (..., 3) RAS mm to continuous voxel indices (i, j, k)."""
        return np.asarray(ras) @ self.inverse[:3, :3].T + self.inverse[:3, 3]

    @property
    def left_handed(self) -> bool:
        """Whether I, J and K are related like thumb, index and middle finger of a left hand."""
        return bool(np.linalg.det(self.affine[:3, :3]) < 0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def slice_axis(self) -> int:
        """Voxel axis across which the slices lie: 0, 1 or 2 for I, J or K.

        The last one, as files keep what a scanner acquired, unless another one is clearly coarser
        (`CLEARLY_COARSER`), as in a file that was turned into standard axes. Thin slices, finer
        than their own pixels, thus stay slices. A volume of a single slice lies across the axis of
        length 1, whatever the slice's thickness.
        """
        if min(self.size) == 1:
            alone = np.flatnonzero(np.array(self.size) == 1)
            return int(max(alone, key=lambda axis: (self.spacing[axis], axis)))
        coarsest = int(self.spacing.argmax())
        clear = self.spacing[coarsest] > CLEARLY_COARSER * np.delete(self.spacing, coarsest).max()
        return coarsest if clear else 2

    def to_json(self) -> dict[str, Any]:
        """Return {size: (I, J, K), affine: four rows}, ready for JSON."""
        return {"size": list(self.size), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Geometry":
        """Read what `to_json` wrote; other keys are ignored.

        The affine may also be 16 numbers, row by row, as older versions wrote it.

        Raises:
            VolumeError: no geometry, such as a singular affine.
            KeyError, TypeError, ValueError: a key is missing, or no numbers.
        """
        affine = np.array(content["affine"], dtype=np.float64)
        return cls(content["size"], affine.reshape(4, 4) if affine.size == 16 else affine)

    def mirrored(self) -> "Geometry":
        """Return the grid of the same voxels with the K axis running the other way."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, 2] * (self.size[2] - 1)
        affine[:3, 2] *= -1
        return Geometry(self.size, affine)

    def matches(self, other: "Geometry", tolerance: float = 1e-3) -> bool:
        """Tell whether both grids have one size and all voxels agree within `tolerance` voxels."""
        if self.size != other.size:
            return False
        last = np.array(self.size) - 1
        corners = np.array(np.meshgrid(*((0, n) for n in last))).reshape(3, -1).T
        return bool(np.abs(self.to_ijk(other.to_ras(corners)) - corners).max() <= tolerance)


FINEST_MM = 0.01
LONGEST_MM = 3000.0
WIDEST_MM = 1200.0
FARTHEST_MM = 1e6
"""Spacing, length, width and place within which a scan of a patient lies; no scanner is wider."""

SMALLEST_MM = 40.0
"""An organ of the trunk does not fit into a scan with no longer edge."""


def require_patient_scale(geometry: Geometry) -> None:
    """Check that a grid is of a patient's size, before hours are spent on one that is not.

    Raises:
        VolumeError: voxels below `FINEST_MM`; longer than `LONGEST_MM`, or along two axes than
            `WIDEST_MM`; further away than `FARTHEST_MM`.
    """
    distance = np.abs(geometry.affine[:3, 3]).max()
    if distance > FARTHEST_MM:
        raise VolumeError(
            f"A scan that lies {distance:.3g} mm from its origin is none of a patient; correct it."
        )
    extent = geometry.size * geometry.spacing
    _, width, length = sorted(extent)
    if geometry.spacing.min() < FINEST_MM or length > LONGEST_MM or width > WIDEST_MM:
        spacing, size = (
            " x ".join(f"{x:.0f}" if x > 99 else f"{x:.3g}" for x in v)
            for v in (geometry.spacing, extent)
        )
        raise VolumeError(
            f"A scan of {size} mm (voxels of {spacing} mm) is none of a patient; its spacing is "
            "wrong or in another unit than mm, correct it."
        )


def scale_doubts(geometry: Geometry) -> list[str]:
    """Word that a scan is very small, in a sentence; [] if it is not."""
    extent = geometry.size * geometry.spacing
    if extent.max() >= SMALLEST_MM:
        return []
    size = " x ".join(f"{x:.3g}" for x in extent)
    return [f"The whole scan is only {size} mm: is its spacing in mm?"]


@dataclass(frozen=True, eq=False)
class Volume:
    """An array of shape (K, J, I) on its grid.

    Attributes:
        modality: "CT" or "MR" if its file says so.
        remarks: what the user should know of how its file was read, a sentence each.
    """

    array: np.ndarray
    geometry: Geometry
    modality: str | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise VolumeError(
                f"Array {self.array.shape} (K, J, I) does not fit a grid of {self.geometry.shape}."
            )


def as_volume(image: Any, affine: np.ndarray | None = None) -> Volume:  # noqa: ANN401 - a MetaTensor
    """Make a volume of an array, or of MONAI's MetaTensor.

    Args:
        image: a Volume, which is returned as it is; a numpy array (K, J, I); or a MetaTensor
            (1, I, J, K) or (I, J, K), as MONAI's LoadImage orders axes, with its own affine.
        affine: of a numpy array, 4x4, voxel index (i, j, k) -> RAS mm.

    Raises:
        VolumeError: an array without an affine, another image with one, other dimensions.
    """
    if isinstance(image, np.ndarray):
        if affine is None:
            raise VolumeError("An array (K, J, I) needs affine=, 4x4, from (i, j, k) to RAS mm.")
        array = image
    elif affine is not None:
        raise VolumeError(f"affine= is for numpy arrays; a {type(image).__name__} has its own.")
    elif isinstance(image, Volume):
        return image
    elif not hasattr(image, "affine") or not hasattr(image, "numpy"):
        raise VolumeError(
            f"A scan is a Volume, a MetaTensor or a numpy array, not a {type(image).__name__}."
        )
    else:
        affine = np.asarray(image.affine)
        array = np.asarray(image.detach().cpu().numpy())
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        array = array.transpose()
    if array.ndim != 3:
        raise VolumeError(f"A scan has three axes and one channel, not the shape {image.shape}.")
    return Volume(array, Geometry(array.shape[::-1], affine))


PATIENT_AXES = {
    "patient": np.eye(3),
    "coronal": np.array([(1, 0, 0), (0, 0, 1), (0, -1, 0)], dtype=float).T,
    "sagittal": np.array([(0, 1, 0), (0, 0, 1), (1, 0, 0)], dtype=float).T,
}
"""Choices of `GridSpec.axes` that do not depend on the scan: I, J and K in RAS, as columns."""


@dataclass(frozen=True)
class GridSpec:
    """The grid of a network's input, before it is placed over a scan.

    Attributes:
        size: window in voxels along (I, J, K), e.g. (160, 128, 160).
        spacing: mm along (I, J, K); size * spacing is the field of view.
        axes: "patient" lays I, J, K along right, anterior, superior; "coronal" along right,
            superior, posterior and "sagittal" along anterior, superior, right, whichever way the
            scan is stored, for slices across K of these planes; "slices" lays them along
            the scan's own axes, that of its slices last (`Geometry.slice_axis`), for stacks without
            a fixed patient orientation such as cardiac short-axis cine.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axes: str = "patient"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(int(n) for n in self.size))
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        if len(self.size) != 3 or min(self.size) < 1:
            raise VolumeError(f"A window has three axes of at least one voxel, not {self.size}.")
        if len(self.spacing) != 3 or not all(0 < s < np.inf for s in self.spacing):
            raise VolumeError(f"A window's spacing is three positive mm, not {self.spacing}.")
        if self.axes not in (*PATIENT_AXES, "slices"):
            known = ", ".join((*PATIENT_AXES, "slices"))
            raise VolumeError(f'axes is one of {known}, not "{self.axes}".')

    @property
    def extent(self) -> np.ndarray:
        """Field of view along (I, J, K) in mm."""
        return np.array(self.size) * np.array(self.spacing)

    def directions_over(self, scan: Geometry) -> np.ndarray:
        """Compute the unit vectors of this grid's I, J and K axes in RAS, the columns of a 3x3."""
        if self.axes in PATIENT_AXES:
            return PATIENT_AXES[self.axes].copy()
        through_plane = scan.slice_axis
        order = [axis for axis in range(3) if axis != through_plane] + [through_plane]
        # A sheared affine has no orthogonal axes; the nearest rotation is what a grid can follow.
        u, _, vt = np.linalg.svd(scan.direction[:, order])
        return u @ vt

    def placed(self, centre: np.ndarray, directions: np.ndarray) -> Geometry:
        """Place the grid with its middle at `centre` (RAS mm), axes along `directions` (3x3)."""
        affine = np.eye(4)
        affine[:3, :3] = directions * np.array(self.spacing)
        affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.array(self.size) - 1) / 2)
        return Geometry(self.size, affine)
