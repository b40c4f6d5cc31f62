# SPDX-License-Identifier: Apache-2.0
"""A phantom patient: the abdomen as a list of shapes, painted one over the other.

Patient space is in mm, x to the right, y anterior, z superior, with the origin in front of the
first lumbar vertebra. Positions, sizes and tilts are drawn from a seed; a smooth deformation bends
the whole, and a rigid motion lays it somewhere in RAS space.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

LABELS = {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}


class Signal(NamedTuple):
    """Intensity of a tissue in one modality: mean, its +- range over cases, texture's SD."""

    mean: float
    spread: float
    texture: float


class Tissue(NamedTuple):
    """Label and signals of a tissue; CT in HU (portal-venous), MR with the spleen at about 1."""

    ct: Signal
    mr: Signal
    label: int = 0


# Suppressed fat, flow voids, dark bone and bright fluid turn many of CT's contrasts round.
TISSUES = {
    "air": Tissue(Signal(-1000, 0, 0), Signal(0.00, 0.00, 0.00)),
    "table": Tissue(Signal(-150, 100, 0), Signal(0.00, 0.00, 0.00)),
    "skin": Tissue(Signal(10, 20, 5), Signal(0.20, 0.05, 0.03)),
    "subcutaneous_fat": Tissue(Signal(-105, 8, 6), Signal(0.13, 0.04, 0.02)),
    "muscle": Tissue(Signal(55, 10, 9), Signal(0.21, 0.05, 0.04)),
    "visceral_fat": Tissue(Signal(-98, 8, 12), Signal(0.15, 0.05, 0.03)),
    "lung": Tissue(Signal(-830, 50, 35), Signal(0.04, 0.02, 0.02)),
    "heart": Tissue(Signal(140, 30, 6), Signal(0.25, 0.10, 0.05)),
    "cortical_bone": Tissue(Signal(480, 90, 50), Signal(0.06, 0.02, 0.02)),
    "marrow": Tissue(Signal(190, 45, 40), Signal(0.17, 0.06, 0.03)),
    "disc": Tissue(Signal(85, 10, 6), Signal(0.30, 0.12, 0.05)),
    "spinal_fluid": Tissue(Signal(22, 8, 4), Signal(1.55, 0.20, 0.05)),
    "cord": Tissue(Signal(40, 6, 4), Signal(0.55, 0.10, 0.03)),
    "artery": Tissue(Signal(185, 45, 4), Signal(0.06, 0.03, 0.02)),
    "vein": Tissue(Signal(160, 30, 4), Signal(0.09, 0.05, 0.03)),
    "soft": Tissue(Signal(85, 20, 14), Signal(0.52, 0.12, 0.08)),
    "gut_wall": Tissue(Signal(80, 20, 10), Signal(0.55, 0.12, 0.08)),
    "fluid": Tissue(Signal(14, 10, 6), Signal(1.45, 0.25, 0.08)),
    "chyme": Tissue(Signal(40, 20, 18), Signal(0.80, 0.25, 0.25)),
    "contrast": Tissue(Signal(260, 60, 35), Signal(1.10, 0.30, 0.15)),
    "stool": Tissue(Signal(-10, 50, 110), Signal(0.35, 0.15, 0.15)),
    "gas": Tissue(Signal(-960, 20, 5), Signal(0.01, 0.01, 0.01)),
    "liver": Tissue(Signal(108, 18, 5), Signal(0.48, 0.09, 0.04), LABELS["liver"]),
    "hepatic_vessel": Tissue(Signal(158, 20, 4), Signal(0.14, 0.06, 0.03), LABELS["liver"]),
    "right_cortex": Tissue(Signal(205, 25, 8), Signal(0.88, 0.10, 0.05), LABELS["right_kidney"]),
    "right_medulla": Tissue(Signal(160, 20, 8), Signal(1.12, 0.10, 0.05), LABELS["right_kidney"]),
    "left_cortex": Tissue(Signal(205, 25, 8), Signal(0.88, 0.10, 0.05), LABELS["left_kidney"]),
    "left_medulla": Tissue(Signal(160, 20, 8), Signal(1.12, 0.10, 0.05), LABELS["left_kidney"]),
    "spleen": Tissue(Signal(128, 18, 5), Signal(1.00, 0.15, 0.05), LABELS["spleen"]),
}

FAR = 600.0
"""Reach in mm of shapes without an end along the body."""

WAIST = 0.05
"""Fraction by which the trunk is narrower at the waist, and wider at chest and hips."""

Where = Callable[[np.ndarray], np.ndarray]
"""(3, K, J, I) points in patient mm -> (K, J, I) bool."""


class Shape(NamedTuple):
    """A tissue and where it is.

    Attributes:
        tissue: name in TISSUES.
        low, high: corners of the bounding box, patient mm.
        inside: function that tells which points it contains.
        onto: names of the tissues this shape may replace; empty for all of them.
    """

    tissue: str
    low: np.ndarray
    high: np.ndarray
    inside: Where
    onto: tuple[str, ...] = ()


# Shapes


def _ball(
    tissue: str,
    centre: np.ndarray,
    semi_axes: np.ndarray,
    tilt: np.ndarray = (0, 0, 0),
    onto: tuple[str, ...] = (),
    where: Where | None = None,
) -> Shape:
    """Make an ellipsoid, turned by the rotation vector `tilt` (degrees), cut to `where`."""
    frame = Rotation.from_rotvec(np.radians(tilt)).as_matrix() * np.asarray(semi_axes, float)
    centre = np.asarray(centre, float)
    half = np.linalg.norm(frame, axis=1)

    def inside(points: np.ndarray) -> np.ndarray:
        mask = (_local(points, centre, frame) ** 2).sum(axis=0) < 1
        return mask & where(points) if where else mask

    return Shape(tissue, centre - half, centre + half, inside, onto)


def _tube(
    tissue: str,
    path: np.ndarray,
    radii: np.ndarray,
    onto: tuple[str, ...] = (),
    where: Where | None = None,
) -> Iterator[Shape]:
    """Make capsules along `path` (n, 3), whose radius goes linearly from knot to knot."""
    path = np.asarray(path, float)
    radii = np.broadcast_to(radii, len(path))
    for a, b, ra, rb in zip(path, path[1:], radii, radii[1:], strict=False):
        if np.array_equal(a, b):
            continue  # no length, and its neighbours end here in balls as large
        reach = max(ra, rb)

        def inside(
            points: np.ndarray, a: np.ndarray = a, b: np.ndarray = b, ra: float = ra, rb: float = rb
        ) -> np.ndarray:
            axis = (b - a).astype(np.float32)
            x, y, z = (points[n] - np.float32(a[n]) for n in range(3))
            along = (x * axis[0] + y * axis[1] + z * axis[2]) / np.float32(axis @ axis)
            along = along.clip(0, 1)
            square = (x - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2
            square += (z - along * axis[2]) ** 2
            mask = square < (np.float32(ra) + along * np.float32(rb - ra)) ** 2
            return mask & where(points) if where else mask

        yield Shape(tissue, np.minimum(a, b) - reach, np.maximum(a, b) + reach, inside, onto)


def _local(points: np.ndarray, centre: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Convert (3, K, J, I) patient mm to coordinates along columns of `frame`, 1 at the ends."""
    inverse = np.linalg.inv(frame).astype(np.float32)
    shifted = points - np.asarray(centre, np.float32).reshape(3, 1, 1, 1)
    return np.tensordot(inverse, shifted, axes=1)


def _column(
    tissue: str,
    ellipse: tuple[float, float, float],
    onto: tuple[str, ...] = (),
    where: Where | None = None,
    x: float = 0.0,
) -> Shape:
    """Make a column along the body with `ellipse` (half axes along x and y, y of the middle)."""
    centre, half = np.array([x, ellipse[2], 0]), np.array([*ellipse[:2], FAR])

    def inside(points: np.ndarray) -> np.ndarray:
        mask = _within(points, ellipse, x)
        return mask & where(points) if where else mask

    return Shape(tissue, centre - half, centre + half, inside, onto)


def _within(points: np.ndarray, ellipse: tuple[float, float, float], x: float = 0.0) -> np.ndarray:
    """Mark the inside of a column; its corners are fuller than an ellipse's."""
    a, b, y = ellipse
    u = (points[0] - x) * (1 / a)
    v = (points[1] - y) * (1 / b)
    u *= u
    v *= v
    return u * (u + 1.2 * v) + v * v < 1


def _grown(ellipse: tuple[float, float, float], by: float) -> tuple[float, float, float]:
    a, b, y = ellipse
    return a + by, b + by, y


# The abdomen, from the outside in

FAT = ("visceral_fat",)
HOLLOW = ("visceral_fat", "gut_wall")
SIDES = {"right": 1, "left": -1}


class Trunk(NamedTuple):
    """Ellipses around the abdominal cavity: half axes along x and y, y of the middle, in mm."""

    cavity: tuple[float, float, float]
    muscle: tuple[float, float, float]
    body: tuple[float, float, float]

    @property
    def back(self) -> float:
        """Position y in mm of the cavity's back wall."""
        return self.cavity[2] - self.cavity[1]


def _anatomy(rng: np.random.Generator, trunk: Trunk) -> Iterator[Shape]:
    yield from _wrapping(rng, trunk)
    yield from _chest(rng, trunk)
    yield from _spine(rng, trunk)
    yield from _pelvis(rng)
    yield from _great_vessels(rng, trunk)
    yield from _liver(rng)
    yield from _spleen(rng)
    for side in SIDES:
        yield from _kidney(rng, side, trunk)
    yield from _stomach_and_pancreas(rng)
    yield from _liver_vessels(rng)
    yield from _bowel(rng, trunk)


def _draw_trunk(rng: np.random.Generator) -> Trunk:
    side, back, front = rng.uniform(114, 128), rng.uniform(-72, -64), rng.uniform(74, 92)
    edges = [(side, back, front)]
    # The muscle wall is thick only behind, where the back muscles are.
    for at_side, behind, before in (
        (rng.uniform(9, 14), rng.uniform(34, 42), rng.uniform(7, 12)),
        (rng.uniform(6, 24), rng.uniform(6, 30), rng.uniform(6, 34)),
    ):
        side, back, front = side + at_side, back - behind, front + before
        edges.append((side, back, front))
    return Trunk(*((side, (front - back) / 2, (front + back) / 2) for side, back, front in edges))


def _wrapping(rng: np.random.Generator, trunk: Trunk) -> Iterator[Shape]:
    """Make scanner table, skin, subcutaneous fat, muscle wall and the fat of the cavity."""
    top = trunk.body[2] - trunk.body[1] - rng.uniform(4, 12)
    bend = rng.uniform(900, 1800)

    def table(points: np.ndarray) -> np.ndarray:
        x, y, _ = points
        return (np.abs(y - x**2 / bend - top + 4) < 2.5) & (np.abs(x) < 190)

    yield _column("skin", trunk.body)
    yield Shape(
        "table", np.array([-190, top - 8, -FAR]), np.array([190, top + 45, FAR]), table, ("air",)
    )
    yield _column("subcutaneous_fat", _grown(trunk.body, -2.5))
    yield _column("muscle", trunk.muscle)
    back = trunk.muscle[2] - trunk.muscle[1]
    half = (rng.uniform(29, 33), rng.uniform(18, 21), back + rng.uniform(16, 22))
    for x in (-half[0], half[0]):
        yield _column("subcutaneous_fat", _grown(half, 1.5), ("muscle",), x=x)
        yield _column("muscle", half, x=x)
    yield _column("visceral_fat", trunk.cavity)


def _chest(rng: np.random.Generator, trunk: Trunk) -> Iterator[Shape]:
    """Make lungs above the two domes of the diaphragm, heart and ribs."""
    domes = [
        (side * rng.uniform(56, 66), rng.uniform(12, 28), top + rng.uniform(-8, 10))
        for side, top in ((1, 118), (-1, 104))
    ]

    def above(points: np.ndarray) -> np.ndarray:
        x, y, z = points
        right, left = (top - (x - a) ** 2 / 80 - (y - b) ** 2 / 130 for a, b, top in domes)
        return z > np.maximum(right, left)

    yield _column("lung", trunk.cavity, FAT, above)
    yield _column("soft", (20, 30, trunk.back + 26), ("lung",))
    yield _ball("visceral_fat", (-14, 30, 148), (70, 46, 56), (0, 0, 25), ("lung",))
    yield _ball("heart", (-16, 30, 150), (62, 40, 50), (0, 0, 25), ("visceral_fat", "lung"), above)

    period, slope = rng.uniform(27, 34), rng.uniform(0.35, 0.6)
    phase, lowest = rng.uniform(0, period), rng.uniform(-30, 0)
    inner = _grown(trunk.cavity, 2)

    def ribs(points: np.ndarray) -> np.ndarray:
        height = points[2] + slope * points[1]
        comb = np.cos((height - phase) * (2 * np.pi / period)) > 0.62
        return comb & (height > lowest) & (points[1] < 40) & ~_within(points, inner)

    yield _column("cortical_bone", _grown(trunk.cavity, 9), ("muscle",), ribs)


def _spine(rng: np.random.Generator, trunk: Trunk) -> Iterator[Shape]:
    """Make vertebrae and discs, canal with cord or fluid, processes, and the psoas."""
    y, half = trunk.back + rng.uniform(2, 8), np.array([rng.uniform(22, 26), rng.uniform(16, 19)])
    period, disc = rng.uniform(33, 38), rng.uniform(7, 10)
    phase = rng.uniform(0, period)

    def level(points: np.ndarray) -> np.ndarray:
        """Compute mm below or above the middle of the nearest vertebra."""
        return np.abs((points[2] - phase + period / 2) % period - period / 2)

    def vertebra(points: np.ndarray) -> np.ndarray:
        return level(points) < (period - disc) / 2

    def inner(points: np.ndarray) -> np.ndarray:
        return level(points) < (period - disc) / 2 - 2

    def arch(points: np.ndarray) -> np.ndarray:
        return level(points) < period * 0.36

    def process(points: np.ndarray) -> np.ndarray:
        return level(points) < 5

    def below_the_ribs(points: np.ndarray) -> np.ndarray:
        return points[2] < 10

    canal, cone = y - half[1] - 9, rng.uniform(-10, 30)  # the cord ends, its sac goes on
    for side in SIDES.values():
        path = [(side * a, y + b, c) for a, b, c in ((24, 2, 45), (36, 2, -60), (54, 22, -170))]
        yield from _tube("muscle", path, (6, rng.uniform(14, 19), 22), FAT)
        yield _column("muscle", (14, 8, trunk.back + 2), FAT, below_the_ribs, side * 62)
    yield _column("cortical_bone", (rng.uniform(36, 42), 4.5, canal - 2), where=process)
    yield _column("cortical_bone", (3.5, 19, canal - 20), ("muscle",), arch)
    yield _column("cortical_bone", (17, 15, canal), where=arch)
    yield _column("marrow", (1.5, 16, canal - 20), ("cortical_bone",), arch)
    yield _column("disc", (*half, y))
    yield _column("cortical_bone", (*(half + 0.5), y), where=vertebra)
    yield _column("marrow", (*(half - 2.5), y), where=inner)
    yield _column("spinal_fluid", (10, 8, canal))
    yield _column("cord", (5, 4, canal + 1), where=lambda points: points[2] > cone)


def _pelvis(rng: np.random.Generator) -> Iterator[Shape]:
    """Make iliac wings, hips and bladder, for scans that go that far down."""
    for side in SIDES.values():
        centre = np.array([side * 62, -30, -225 + rng.uniform(-8, 8)])

        def wing(points: np.ndarray, side: int = side, centre: np.ndarray = centre) -> np.ndarray:
            return side * points[0] - 0.3 * points[1] > side * centre[0] + 4

        yield _ball("cortical_bone", centre, (62, 66, 82), where=wing)
        yield _ball("marrow", centre, (58, 62, 79), onto=("cortical_bone",), where=wing)
        yield _ball("cortical_bone", centre, (54, 58, 84), onto=("marrow",), where=wing)
        yield _ball("muscle", centre, (52, 56, 84), onto=("cortical_bone", "marrow"), where=wing)
    yield _ball("fluid", (0, 38, -235), np.array([36, 28, 34]) * rng.uniform(0.6, 1.2), onto=FAT)


def _great_vessels(rng: np.random.Generator, trunk: Trunk) -> Iterator[Shape]:
    front = trunk.back + 32
    aorta = [(-14, front + 2, 200), (-12, front, 60), (-9, front, -95)]
    cava = [(26, front + 16, 118), (24, front + 6, 70), (20, front, -20), (18, front, -100)]
    yield from _tube("vein", cava, rng.uniform(9, 12.5))
    yield from _tube("artery", aorta, rng.uniform(8.5, 11.5))
    for side in SIDES.values():
        iliac = [(side * 8, front - 2, -95), (side * 34, front + 2, -165), (side * 58, 34, -240)]
        yield from _tube("vein", np.add(iliac, (4, -5, 0)), 6.5)
        yield from _tube("artery", iliac, 5.5)
    yield from _tube(
        "artery", [(-11, front, 35), (-10, front + 22, 20), (-6, front + 28, -60)], 3.5
    )


def _liver(rng: np.random.Generator) -> Iterator[Shape]:
    """Make a big right and a thin left lobe under the diaphragm, cut off by the gut below."""
    down = np.array([-0.55, -0.12, -0.80]) + rng.uniform(-0.06, 0.06, 3)
    lowest = np.array([30, 0, rng.uniform(8, 26)])
    ripple = rng.uniform(0, 2 * np.pi, 2)

    def above_gut(points: np.ndarray) -> np.ndarray:
        x, y, z = (points[n] - lowest[n].astype(np.float32) for n in range(3))
        depth = down[0] * x + down[1] * y + down[2] * z
        return depth < 4 * np.sin(y / 17 + ripple[0]) + 3 * np.sin(x / 23 + ripple[1])

    size = rng.uniform(0.93, 1.07)
    reach = rng.uniform(48, 82)  # of the left lobe across the midline
    right = (rng.uniform(62, 70), rng.uniform(0, 6), rng.uniform(36, 46))
    left = (20 - reach / 2, rng.uniform(42, 52), rng.uniform(60, 72))
    yield _ball("liver", right, size * np.array([88, 84, 94]), (0, 0, -15), FAT, above_gut)
    yield _ball("liver", left, (reach, rng.uniform(28, 36), rng.uniform(32, 42)), (0, 22, 14), FAT)
    fissure = (rng.uniform(4, 14), 56, 38)
    yield _ball("visceral_fat", fissure, (2.5, 30, 24), (0, 0, rng.uniform(-20, 20)), ("liver",))
    gallbladder = np.array([rng.uniform(42, 58), rng.uniform(38, 50), rng.uniform(-4, 14)])
    size = np.array([13, 15, 27]) * rng.uniform(0.7, 1.2)
    yield _ball("gut_wall", gallbladder, size + 2, (35, 0, 0), ("liver", "visceral_fat"))
    yield _ball("fluid", gallbladder, size, (35, 0, 0), ("gut_wall",))


def _spleen(rng: np.random.Generator) -> Iterator[Shape]:
    """Make a cap against the left wall, hollowed by the stomach and the kidney in front of it."""
    centre = np.array([-92, -24, 58]) + rng.uniform(-4, 4, 3)
    hollow = centre + rng.uniform((40, 26, -10), (50, 36, -2))
    frame = np.diag([46.0, 48.0, 62.0])

    def cap(points: np.ndarray) -> np.ndarray:
        return (_local(points, hollow, frame) ** 2).sum(axis=0) > 1

    size = np.array([45, 52, 56]) * rng.uniform(0.93, 1.22)
    yield _ball("spleen", centre, size, rng.uniform(-15, 15, 3), FAT, cap)


def _kidney(rng: np.random.Generator, side: str, trunk: Trunk) -> Iterator[Shape]:
    """Make cortex, pyramids, and a sinus with fat and pelvis that opens towards the spine."""
    sign = SIDES[side]
    lower = 18 if side == "right" else 0
    centre = np.array([sign * 64, trunk.back + 36, 2 - lower]) + rng.uniform(-5, 5, 3)
    size = np.array([29, 25, 54]) * rng.uniform(0.88, 1.1) * rng.uniform(0.94, 1.06, 3)
    # Columns: the way to the hilum (medial, a bit anterior), across, and along the kidney, whose
    # upper pole leans back and towards the spine.
    along = np.array([-sign * rng.uniform(0.12, 0.35), rng.uniform(-0.35, -0.1), 1.0])
    along /= np.linalg.norm(along)
    hilum = np.array([-sign, rng.uniform(0.3, 0.9), 0.0])
    hilum -= along * (along @ hilum)
    hilum /= np.linalg.norm(hilum)
    frame = np.stack([hilum, np.cross(along, hilum), along], axis=1) * size
    half = 1.4 * np.linalg.norm(frame, axis=1)
    low, high = centre - half, centre + half

    def radius(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the squared distance (1 at the surface) and coordinates in the bent frame."""
        uvw = _local(points, centre, frame)
        uvw[0] -= 0.28 * uvw[2] ** 2  # a bean: the poles bend towards the hilum
        return (uvw**2).sum(axis=0), uvw

    gap = rng.uniform(1.06, 1.25)
    pelvis = rng.uniform(0.05, 0.25)
    pyramids, twist = rng.integers(6, 9), rng.uniform(0, 2 * np.pi)

    def capsule(points: np.ndarray) -> np.ndarray:
        return radius(points)[0] < gap**2

    def cortex(points: np.ndarray) -> np.ndarray:
        return radius(points)[0] < 1

    def medulla(points: np.ndarray) -> np.ndarray:
        square, (u, v, w) = radius(points)
        around = np.cos(pyramids * np.arctan2(w, 0.4 - u) + twist) + 0.5 * np.cos(4 * v + twist)
        return (square < 0.62) & (around > -0.35)

    def sinus(points: np.ndarray, grow: float = 1.0) -> np.ndarray:
        _, (u, v, w) = radius(points)
        return ((u - 0.75) / 0.68) ** 2 + (v / 0.3) ** 2 + (w / 0.46) ** 2 < grow

    tissues = (f"{side}_cortex", f"{side}_medulla")
    yield Shape("visceral_fat", low, high, capsule, ("liver", "spleen"))
    yield Shape(tissues[0], low, high, cortex, FAT)
    yield Shape(tissues[1], low, high, medulla, tissues[:1])
    yield Shape("visceral_fat", low, high, sinus, tissues)
    yield Shape("fluid", low, high, lambda points: sinus(points, pelvis), FAT)
    door = centre + 0.6 * frame[:, 0]
    front = trunk.back + 32
    vein, artery = (22, front + 2, centre[2] + 6), (-11, front, centre[2] + 10)
    yield from _tube("vein", [door, vein], rng.uniform(3.5, 5.5), FAT)
    yield from _tube("artery", [np.add(door, (0, -4, 3)), artery], rng.uniform(2, 3), FAT)


def _hollow(
    path: np.ndarray,
    radii: np.ndarray,
    content: str,
    wall: float = 2.5,
    gas: float = 0.0,
) -> Iterator[Shape]:
    """Make gut with its content; `gas` is the share of its height above the fluid level."""
    path, radii = np.asarray(path, float), np.broadcast_to(radii, len(path))
    yield from _tube("gut_wall", path, radii, FAT)
    yield from _tube(content, path, radii - wall, HOLLOW)
    if gas:
        # The patient lies on the back: gas collects in front.
        level = path[:, 1].max() + radii.max() - gas * (np.ptp(path[:, 1]) + 2 * radii.max())
        yield from _tube(
            "gas", path, radii - wall, (content,), lambda points, level=level: points[1] > level
        )


def _stomach_and_pancreas(rng: np.random.Generator) -> Iterator[Shape]:
    path = np.array([(-58, 2, 78), (-56, 22, 48), (-36, 46, 14), (2, 50, 0), (26, 36, 6)])
    path = path + rng.uniform(-7, 7, path.shape)
    radii = np.array([34, 30, 23, 16, 10]) * rng.uniform(0.75, 1.1)
    content = rng.choice(["fluid", "chyme", "contrast"])
    yield from _hollow(path, radii, content, 4, rng.uniform(0, 0.5))
    duodenum = [(26, 36, 6), (44, 22, -8), (40, 8, -42), (6, 2, -52), (-28, 6, -34)]
    yield from _hollow(duodenum, 11, rng.choice(["fluid", "chyme"]))
    pancreas = [(30, 14, -22), (24, 16, -6), (-8, 18, 10), (-44, -4, 26), (-66, -16, 36)]
    pancreas = np.array(pancreas) + rng.uniform(-4, 4, (5, 3))
    yield from _tube("soft", pancreas, (13, 10, 9, 9, 7), FAT)


def _liver_vessels(rng: np.random.Generator) -> Iterator[Shape]:
    """Make the portal vein, its tree in the liver, and the hepatic veins."""
    porta = np.array([34, 8, 34]) + rng.uniform(-3, 3, 3)
    confluence = np.array([6, 8, 0])
    splenic = [(-70, -20, 44), (-30, 0, 20), confluence]
    yield from _tube("vein", splenic, 4, (*FAT, "soft"))
    yield from _tube("vein", [(0, 14, -70), confluence, porta], 5.5, (*FAT, "soft"))
    roots = [(porta, (75, 0, 45), 5.0), (porta, (72, 30, 25), 4.5), (porta, (-6, 44, 62), 4.0)]
    cava = np.array([25, -20, 100])
    roots += [(cava, target, 4.5) for target in ((95, -20, 60), (70, 35, 62), (5, 40, 74))]
    for start, target, radius in roots:
        end = np.array(target) + rng.uniform(-10, 10, 3)
        yield from _branches(rng, start, end, radius, generations=4)


def _branches(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, radius: float, generations: int
) -> Iterator[Shape]:
    yield from _tube("hepatic_vessel", [start, end], (radius, 0.8 * radius), ("liver",))
    if generations > 1:
        for _ in range(2):
            way = (end - start) * 0.6 + rng.normal(0, 14, 3)
            yield from _branches(rng, end, end + way, 0.7 * radius, generations - 1)


def _bowel(rng: np.random.Generator, trunk: Trunk) -> Iterator[Shape]:
    """Make the frame of the colon, loops of small bowel within it, and mesenteric vessels."""
    side, front = trunk.cavity[0] - 22, trunk.cavity[1] + trunk.cavity[2] - 26
    colon = [
        [(side - 16, -2, -165), (side, -8, -110), (side - 2, -4, -55)],
        [(side - 2, -4, -55), (side - 30, front - 14, -38), (0, front, -55)],
        [(0, front, -55), (-side + 30, front - 10, -25), (-side + 4, 10, 6)],
        [(-side + 4, 10, 6), (-side, -18, -60), (-side + 6, -14, -130)],
        [(-side + 6, -14, -130), (-50, 10, -185), (-6, -10, -200), (0, -30, -260)],
    ]
    for section in colon:
        section = np.array(section) + rng.uniform(-5, 5, (len(section), 3))
        steps = np.linspace(0, len(section) - 1, 7 * (len(section) - 1) + 1)
        path = np.stack([np.interp(steps, range(len(section)), p) for p in section.T], axis=1)
        radii = rng.uniform(13, 21) * (1 + 0.18 * np.cos(np.arange(len(path)) * np.pi))
        content = rng.choice(["stool", "stool", "gas", "chyme"])
        gas = rng.choice([0.0, rng.uniform(0.2, 0.6)])
        yield from _hollow(path, radii, content, 2.5, gas if content != "gas" else 0.0)

    for _ in range(rng.integers(16, 24)):
        start = np.array([rng.uniform(-70, 70), rng.uniform(0, front - 8), rng.uniform(-190, -45)])
        path = start + np.cumsum(rng.normal(0, (20, 9, 12), (6, 3)), axis=0)
        path = path.clip((-78, -8, -215), (78, front - 4, -38))
        content = rng.choice(["fluid", "chyme", "chyme", "contrast", "gas"])
        yield from _hollow(path, rng.uniform(9, 14), content, 2.5)
    for _ in range(14):
        end = (rng.uniform(-85, 85), rng.uniform(0, front), rng.uniform(-150, -20))
        yield from _tube("vein", [(2, 10, -40), end], (3, 1.2), FAT)


@dataclass(frozen=True, eq=False)
class Patient:
    """Shapes in patient mm, and the transform from RAS mm to patient mm.

    Attributes:
        shapes: in the order of painting.
        trunk: ends of body, muscle wall and cavity, patient mm.
        matrix, offset: patient mm -> RAS mm; rotation and scale of each axis, then a shift.
        waves, phases, amplitudes: the deformation, a sum of sines: (n, 3) rad / mm, (n,) and
            (n, 3) mm.
    """

    shapes: list[Shape]
    trunk: Trunk
    matrix: np.ndarray
    offset: np.ndarray
    waves: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray

    def from_ras(self, ras: np.ndarray) -> np.ndarray:
        """Convert (..., 3) RAS mm to patient mm, waist and deformation included."""
        points = (ras - self.offset) @ np.linalg.inv(self.matrix).T
        points[..., :2] /= 1 - WAIST * np.cos((points[..., 2:] + 75) * (2 * np.pi / 330))
        return points + np.sin(points @ self.waves.T + self.phases) @ self.amplitudes

    def to_ras(self, points: np.ndarray) -> np.ndarray:
        """Convert (..., 3) patient mm to RAS mm, without waist and deformation."""
        return points @ self.matrix.T + self.offset

    def ras_corners(self, shape: Shape) -> np.ndarray:
        """Compute the corners of a box around the deformed `shape`: (8, 3) RAS mm."""
        margin = np.abs(self.amplitudes).sum(axis=0)
        low, high = shape.low - margin, shape.high + margin
        margin = WAIST * np.maximum(np.abs(low), np.abs(high)) * (1, 1, 0)
        box = zip(low - margin, high + margin, strict=True)
        return self.to_ras(np.array(np.meshgrid(*box)).reshape(3, -1).T)


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient: proportions, organs, gut content, posture and position."""
    trunk = _draw_trunk(rng)
    tilt = Rotation.from_rotvec(np.radians(rng.uniform(-5, 5, 3))).as_matrix()
    directions = rng.normal(size=(6, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Patient(
        shapes=list(_anatomy(rng, trunk)),
        trunk=trunk,
        matrix=tilt * rng.uniform(0.92, 1.08) * rng.uniform(0.96, 1.04, 3),
        offset=rng.uniform(-80, 80, 3),
        waves=2 * np.pi * directions / rng.uniform(140, 320, (6, 1)),
        phases=rng.uniform(0, 2 * np.pi, 6),
        amplitudes=rng.uniform(-3, 3, (6, 3)),
    )
