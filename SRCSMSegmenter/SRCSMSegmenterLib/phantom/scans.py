# SPDX-License-Identifier: Apache-2.0
"""Scans of a digital phantom of the abdomen, CT-like and MR-like.

The anatomy (anatomy.py) is continuous. A scan evaluates it at several points per voxel across the
slice, averages their intensities (partial volume) and adds what the modality adds: point spread
and correlated noise for CT; bias field, Rician noise and an arbitrary scale for T2-SPIR MR.
Everything follows from one seed.
"""

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from ..geometry import Geometry, Volume
from .anatomy import TISSUES, Patient, Shape, draw_patient

MODALITIES = ("CT", "MR")
POINTS_ACROSS = {"CT": 3, "MR": 5}
"""Points evaluated per voxel, across its slice; odd, so that one of them is its centre."""

INDEX = {name: number for number, name in enumerate(TISSUES)}
LABEL_OF = np.array([tissue.label for tissue in TISSUES.values()], dtype=np.uint8)


def make_case(seed: int, modality: str) -> tuple[Volume, Volume]:
    """Make a scan of a phantom patient.

    Args:
        seed: the patient; the same seed gives the same anatomy in both modalities, and the same
            scan bit for bit.
        modality: "CT" or "MR".

    Returns:
        The image (int16; CT in HU over the full range, MR in arbitrary units) and its labels
        (uint8, see `anatomy.LABELS`) on one grid: anisotropic, oblique, of either handedness and
        at times with permuted axes. A label is that of the tissue at the voxel's centre.
    """
    patient = draw_patient(np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1 + MODALITIES.index(modality)])
    geometry = _draw_grid(rng, patient, modality)
    fine = _supersampled(geometry, POINTS_ACROSS[modality])
    tissues = paint(patient, fine).reshape(-1, POINTS_ACROSS[modality], *geometry.shape[1:])
    labels = LABEL_OF[tissues[:, POINTS_ACROSS[modality] // 2]]
    image = _intensities(rng, tissues, modality, geometry.spacing)
    image = (_acquire_ct if modality == "CT" else _acquire_mr)(rng, image)
    order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
    return _permuted(image, geometry, order), _permuted(labels, geometry, order)


# The scanner


def _draw_grid(rng: np.random.Generator, patient: Patient, modality: str) -> Geometry:
    """Draw an oblique grid around the patient's abdomen; K runs along the body."""
    half_width, half_depth, middle_y = patient.trunk.body
    in_plane = max(half_width * rng.uniform(2.15, 2.3) / 192, half_depth * 2.25 / 160)
    if modality == "CT":
        thickness, extent = rng.uniform(3, 5), rng.uniform(300, 450)
        middle = rng.uniform(155, 190) - extent / 2
    else:
        thickness, extent = rng.uniform(6.5, 7.8), rng.uniform(250, 280)
        middle = rng.uniform(12, 28)
    spacing = np.array([in_plane, in_plane, thickness])
    size = np.array([192, 160, round(extent / thickness)])
    turn = rng.normal(size=3)
    turn *= np.radians(rng.uniform(0, 15)) / np.linalg.norm(turn)
    flips = rng.choice([-1.0, 1.0], 3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() * (flips * spacing)
    centre = patient.to_ras(np.array([rng.uniform(-6, 6), middle_y - rng.uniform(0, 8), middle]))
    affine[:3, 3] = centre - affine[:3, :3] @ ((size - 1) / 2)
    return Geometry(tuple(size), affine)


def _supersampled(geometry: Geometry, factor: int) -> Geometry:
    """Cut each slice of a grid into `factor` thinner ones."""
    affine = geometry.affine.copy()
    affine[:3, 2] /= factor
    affine[:3, 3] -= affine[:3, 2] * (factor - 1) / 2
    return Geometry((*geometry.size[:2], geometry.size[2] * factor), affine)


def paint(patient: Patient, grid: Geometry) -> np.ndarray:
    """Compute the tissue at each point of `grid`: (K, J, I) uint8 indices into TISSUES."""
    points = _patient_points(patient, grid)
    canvas = np.zeros(grid.shape, np.uint8)
    for shape in patient.shapes:
        box = _box(patient, shape, grid)
        block = canvas[box]
        if not block.size:
            continue
        mask = shape.inside(points[:, *box])
        if shape.onto:
            paintable = np.zeros(len(TISSUES), bool)
            paintable[[INDEX[name] for name in shape.onto]] = True
            mask &= paintable[block]
        block[mask] = INDEX[shape.tissue]
    return canvas


def _patient_points(patient: Patient, grid: Geometry) -> np.ndarray:
    """Compute (3, K, J, I) float32 patient mm of each point of `grid`.

    The deformation bends over 140 mm and more: computed every 10 mm and interpolated linearly it
    is off by up to 0.2 mm.
    """
    knots = [
        np.linspace(0, n - 1, 2 + int((n - 1) * mm / 10))
        for n, mm in zip(grid.size, grid.spacing, strict=True)
    ]
    k, j, i = np.meshgrid(*knots[::-1], indexing="ij")
    lattice = patient.from_ras(grid.to_ras(np.stack([i, j, k], axis=-1))).astype(np.float32)
    weights = [_between(n, along) for n, along in zip(grid.size, knots, strict=True)]
    return np.einsum("kjix,Ii,Jj,Kk->xKJI", lattice, *weights, optimize=True)


def _between(n: int, knots: np.ndarray) -> np.ndarray:
    """Compute (n, knots) float32 weights that interpolate linearly from knots to 0 ... n - 1."""
    hats = np.eye(len(knots))
    return np.stack([np.interp(np.arange(n), knots, hat) for hat in hats], axis=1, dtype=np.float32)


def _box(patient: Patient, shape: Shape, grid: Geometry) -> tuple[slice, slice, slice]:
    """Compute the (K, J, I) slices of `grid` outside of which `shape` cannot be."""
    ijk = grid.to_ijk(patient.ras_corners(shape))
    first = np.clip(np.floor(ijk.min(axis=0)), 0, grid.size).astype(int)
    last = np.clip(np.ceil(ijk.max(axis=0)) + 1, 0, grid.size).astype(int)
    return tuple(slice(a, b) for a, b in zip(first[::-1], last[::-1], strict=True))


def _intensities(
    rng: np.random.Generator, tissues: np.ndarray, modality: str, spacing: np.ndarray
) -> np.ndarray:
    """Convert (K, n, J, I) tissues to (K, J, I) float32: means over n points, and texture."""
    signals = [getattr(tissue, modality.lower()) for tissue in TISSUES.values()]
    means = np.array([k.mean + rng.uniform(-k.spread, k.spread) for k in signals], np.float32)
    textures = np.array([k.texture for k in signals], np.float32)
    shape = (len(tissues), *tissues.shape[2:])
    texture = _noise(rng, 2.5 / spacing[::-1], shape)  # grains of a few mm
    return means[tissues].mean(axis=1) + textures[tissues].mean(axis=1) * texture


def _noise(rng: np.random.Generator, sigmas: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Draw Gaussian noise of unit SD, correlated over `sigmas` voxels along (K, J, I)."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigmas, truncate=3)
    return noise / noise.std()


def _acquire_ct(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add in-plane point spread and correlated quantum noise; int16 HU."""
    image = gaussian_filter(image, (0, 0.6, 0.6))
    image += rng.uniform(8, 20) * _noise(rng, (0, 0.8, 0.8), image.shape)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _acquire_mr(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add point spread, bias field, Rician noise and a scale of the scanner's own; int16."""
    image = gaussian_filter(image, (0, 0.6, 0.6))
    k, j, i = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape), indexing="ij", sparse=True
    )
    a = rng.uniform(-0.3, 0.3, 6).astype(np.float32)
    bias = np.exp(a[0] * k + a[1] * j + a[2] * i + a[3] * j * i + a[4] * j**2 + a[5] * i**2)
    real, imaginary = rng.uniform(0.025, 0.06) * rng.standard_normal((2, *image.shape), np.float32)
    scale = np.exp(rng.uniform(np.log(150), np.log(1500)))
    return np.rint(scale * np.hypot(image * bias + real, imaginary)).astype(np.int16)


def _permuted(array: np.ndarray, geometry: Geometry, order: np.ndarray) -> Volume:
    """Store the same volume with voxel axis `order[n]` as axis n of (I, J, K)."""
    size = tuple(geometry.size[n] for n in order)
    affine = geometry.affine[:, [*order, 3]]
    stored = np.ascontiguousarray(array.transpose([2 - n for n in order[::-1]]))
    return Volume(stored, Geometry(size, affine))
