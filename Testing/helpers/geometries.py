# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for voxel grids, shared by the tests of geometry and of files."""

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from SRCSMSegmenterLib.geometry import Geometry


def _floats(low: float, high: float):
    return st.floats(low, high, allow_nan=False, width=64)


@st.composite
def geometries(draw, max_size: int = 9, max_shear: float = 0.0) -> Geometry:
    """Anisotropic grids, oblique or permuted, left- or right-handed, anywhere; at times sheared."""
    size = tuple(draw(st.integers(1, max_size)) for _ in range(3))
    spacing = np.array([draw(_floats(0.3, 8.0)) for _ in range(3)])
    turn = Rotation.from_rotvec([draw(_floats(-3.0, 3.0)) for _ in range(3)]).as_matrix()
    if draw(st.booleans()):
        turn = np.eye(3)
    axes = np.eye(3)[:, draw(st.permutations(range(3)))]
    signs = [draw(st.sampled_from((-1.0, 1.0))) for _ in range(3)]
    shear = np.eye(3)
    if max_shear:
        shear[np.triu_indices(3, 1)] = [draw(_floats(-max_shear, max_shear)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = turn @ (axes * signs) @ shear * spacing
    # NIfTI holds the origin in 32 bits: at 250 mm that is 1e-5 mm, far less than 1e-4 voxel.
    affine[:3, 3] = [draw(_floats(-250.0, 250.0)) for _ in range(3)]
    return Geometry(size, affine)


def oblique_left_handed(size=(7, 5, 4)) -> Geometry:
    """A fixed grid on which every mistake of sign, order or axis shows."""
    turn = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.8, 0.9, -2.5)
    affine[:3, 3] = (10.25, -20.5, 33.75)
    return Geometry(size, affine)
