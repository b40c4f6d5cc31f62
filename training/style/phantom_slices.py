# SPDX-License-Identifier: Apache-2.0
"""Phantom slices in several styles: one anatomy as CT, T1, T2 and ultrasound show it.

A small base model learns from them what a prompt means. Fat is bright in this T2, unlike in the
phantom's own MR (T2-SPIR), which is the target of experiments and must not be seen by a base.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.phantom.anatomy import LABELS, TISSUES, Patient, draw_patient
from SRCSMSegmenterLib.phantom.scans import INDEX, LABEL_OF, paint

from ..engine.config import one_of, to_dict
from ..engine.limits import Limits
from .config import StyleConfig
from .slices import (
    Slice,
    SliceSet,
    StageResult,
    begin_set,
    write_manifest,
    write_picture,
)

FINE = 2
"""Points across a pixel that its intensity is the mean of, along rows and columns."""

MANIFEST_EVERY = 25
"""Patients between two manifests: so many are made again after a kill."""

WINDOW = (-125.0, 275.0)
"""HU that become black and white in the CT style."""

# Relative signal of each tissue. Kidneys: cortex, medulla.
T1 = {
    "air": 0.0, "table": 0.0, "skin": 0.35, "subcutaneous_fat": 0.92, "muscle": 0.38,
    "visceral_fat": 0.85, "lung": 0.05, "heart": 0.30, "cortical_bone": 0.05, "marrow": 0.66,
    "disc": 0.34, "spinal_fluid": 0.12, "cord": 0.42, "artery": 0.16, "vein": 0.20, "soft": 0.60,
    "gut_wall": 0.40, "fluid": 0.12, "chyme": 0.34, "contrast": 0.30, "stool": 0.48, "gas": 0.01,
    "liver": 0.56, "hepatic_vessel": 0.26, "right_cortex": 0.46, "right_medulla": 0.34,
    "left_cortex": 0.46, "left_medulla": 0.34, "spleen": 0.36,
}  # fmt: skip
T2 = {
    "air": 0.0, "table": 0.0, "skin": 0.30, "subcutaneous_fat": 0.80, "muscle": 0.16,
    "visceral_fat": 0.74, "lung": 0.04, "heart": 0.20, "cortical_bone": 0.04, "marrow": 0.48,
    "disc": 0.40, "spinal_fluid": 0.98, "cord": 0.36, "artery": 0.05, "vein": 0.08, "soft": 0.42,
    "gut_wall": 0.36, "fluid": 0.98, "chyme": 0.62, "contrast": 0.80, "stool": 0.30, "gas": 0.01,
    "liver": 0.26, "hepatic_vessel": 0.12, "right_cortex": 0.52, "right_medulla": 0.66,
    "left_cortex": 0.52, "left_medulla": 0.66, "spleen": 0.46,
}  # fmt: skip
ECHO = {
    "air": 0.0, "table": 0.0, "skin": 0.80, "subcutaneous_fat": 0.34, "muscle": 0.28,
    "visceral_fat": 0.52, "lung": 0.60, "heart": 0.10, "cortical_bone": 0.75, "marrow": 0.12,
    "disc": 0.30, "spinal_fluid": 0.03, "cord": 0.16, "artery": 0.03, "vein": 0.03, "soft": 0.50,
    "gut_wall": 0.36, "fluid": 0.02, "chyme": 0.26, "contrast": 0.24, "stool": 0.55, "gas": 0.70,
    "liver": 0.42, "hepatic_vessel": 0.06, "right_cortex": 0.30, "right_medulla": 0.15,
    "left_cortex": 0.30, "left_medulla": 0.15, "spleen": 0.47,
}  # fmt: skip
OPAQUE = ("cortical_bone", "gas", "lung", "stool")
"""Tissues that ultrasound does not pass."""


def write_phantom_slices(
    folder: Path,
    config: StyleConfig,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> StageResult:
    """Write a slice set of `config.phantom`, or what an earlier call did not come to.

    Raises:
        ConfigError: an unknown style.
        DatasetError: `folder` holds other slices.
        StyleError: the slices cannot be written.
    """
    time_is_up = limits.start()
    wanted = config.phantom
    for style in wanted.styles:
        one_of("phantom.styles", style, tuple(STYLES))
    settings = {"stage": "phantom", "size": config.size, **to_dict(wanted)}
    new = SliceSet(Path(folder), "phantom", "CT", _labels(), config.size, settings)
    slices = begin_set(new)
    seeds = range(wanted.seed, wanted.seed + wanted.patients)
    there = {s.case for s in slices.slices}
    made, done = list(slices.slices), 0
    for seed in seeds:
        if time_is_up():
            break
        if f"phantom_{seed}" not in there:
            made += _slices_of(seed, slices, config)
        done += 1
        if done % MANIFEST_EVERY == 0:
            write_manifest(replace(slices, slices=tuple(made)))
        progress(done, len(seeds), f"patient {seed}")
    finished = done == len(seeds)
    write_manifest(replace(slices, slices=tuple(made), complete=finished))
    return StageResult(done, len(seeds), slices.folder if finished else None)


def slice_of_patient(
    patient: Patient, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, Geometry]:
    """Cut a slice through the organs, somewhat oblique.

    Returns:
        (FINE * size, FINE * size) uint8 indices into TISSUES, and the grid of the picture's
        pixels, (size, size, 1).
    """
    half_width, _, middle_y = patient.trunk.body
    side = half_width * rng.uniform(2.15, 2.5)
    turn = rng.normal(size=3)
    turn *= np.radians(rng.uniform(0, 12)) / np.linalg.norm(turn)
    level = rng.uniform(-65, 105)  # patient mm: from below the kidneys to the liver's dome
    centre = patient.to_ras(np.array([rng.uniform(-6, 6), middle_y + rng.uniform(-8, 8), level]))
    axes = Rotation.from_rotvec(turn).as_matrix() @ np.diag([-1.0, -1.0, 1.0])
    fine = _centred(axes, side / (size * FINE), size * FINE, centre)
    return paint(patient, fine)[0], _centred(axes, side / size, size, centre)


def render(tissues: np.ndarray, style: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw the tissues of `slice_of_patient` in one style, (size, size) uint8."""
    return np.rint(np.clip(STYLES[style](tissues, rng, size), 0, 1) * 255).astype(np.uint8)


def _slices_of(seed: int, slices: SliceSet, config: StyleConfig) -> list[Slice]:
    """Write all pictures of a patient."""
    patient = draw_patient(np.random.default_rng([seed, 0]))
    names = {value: name for name, value in slices.labels.items()}
    made = []
    for number in range(config.phantom.slices):
        rng = np.random.default_rng([seed, 1, number])
        tissues, grid = slice_of_patient(patient, rng, config.size)
        mask = LABEL_OF[tissues][FINE // 2 :: FINE, FINE // 2 :: FINE]
        counts = np.bincount(mask.ravel(), minlength=len(names) + 1)
        stem = f"phantom_{seed}_{number}"
        mask_path = f"masks/{stem}.png"
        mask_sum = write_picture(slices.folder / mask_path, mask)
        for style in config.phantom.styles:
            path = f"images/{stem}_{style}.png"
            image = render(tissues, style, rng, config.size)
            made.append(
                Slice(
                    name=f"{stem}_{style}",
                    case=f"phantom_{seed}",
                    image=path,
                    mask=mask_path,
                    image_sha256=write_picture(slices.folder / path, image),
                    mask_sha256=mask_sum,
                    style=style,
                    pixels={name: int(counts[v]) for v, name in names.items() if counts[v]},
                    affine=grid.affine.ravel().tolist(),
                    seed=seed,
                )
            )
    return made


def _labels() -> dict[str, int]:
    return {name: value for name, value in LABELS.items() if value}


def _centred(axes: np.ndarray, pixel: float, size: int, centre: np.ndarray) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = axes * [pixel, pixel, 5.0]
    affine[:3, 3] = centre - affine[:3, :2].sum(axis=1) * (size - 1) / 2
    return Geometry((size, size, 1), affine)


# The styles: (tissues, rng, size) -> (size, size) floats, 0 black and 1 white


def _ct(tissues: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    contrasts = [tissue.ct for tissue in TISSUES.values()]
    means = np.array([c.mean + rng.uniform(-c.spread, c.spread) for c in contrasts])
    textures = np.array([c.texture for c in contrasts])
    image = _mean(means[tissues], size) + _mean(textures[tissues], size) * _grains(rng, size, 0.8)
    image = gaussian_filter(image, 0.4) + rng.uniform(5, 15) * _grains(rng, size, 0.6)
    return (image - WINDOW[0]) / (WINDOW[1] - WINDOW[0])


def _mr(signal: dict[str, float]) -> Callable[..., np.ndarray]:
    def draw(tissues: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
        means = np.array([signal[name] for name in TISSUES]) * rng.uniform(0.85, 1.15, len(TISSUES))
        image = _mean(means[tissues], size) * (1 + 0.06 * _grains(rng, size, 0.8))
        row, column = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
        a = rng.uniform(-0.2, 0.2, 5)
        bias = np.exp(
            a[0] * row + a[1] * column + a[2] * row**2 + a[3] * column**2 + a[4] * row * column
        )
        noise = rng.uniform(0.01, 0.035) * rng.standard_normal((2, size, size))
        return np.hypot(gaussian_filter(image, 0.4) * bias + noise[0], noise[1])

    return draw


def _ultrasound(tissues: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw speckle, interfaces across the beam, attenuation and shadows; the probe is in front."""
    means = np.array([ECHO[name] for name in TISSUES]) * rng.uniform(0.85, 1.15, len(TISSUES))
    opaque = np.isin(tissues, [INDEX[name] for name in OPAQUE])
    shade = np.exp(-np.cumsum(_mean(opaque, size), axis=0) * rng.uniform(0.15, 0.3))
    echo = _mean(means[tissues], size)
    edges = np.abs(np.diff(echo, axis=0, prepend=echo[:1]))
    real, imaginary = gaussian_filter(rng.standard_normal((2, size, size)), (0, 0.5, 0.9))
    speckle = np.hypot(real, imaginary) / np.hypot(real, imaginary).mean()
    depth = np.linspace(0, 1, size)[:, None]
    gain = np.exp(-depth * rng.uniform(0.3, 0.9)) * rng.uniform(1.0, 1.3)
    image = gain * (0.35 + 0.65 * shade) * (echo * (0.35 + 0.65 * speckle) + 1.2 * edges)
    return np.sqrt(np.maximum(image, 0)) * 0.85  # log compression, nearly


STYLES = {"ct": _ct, "t1": _mr(T1), "t2": _mr(T2), "ultrasound": _ultrasound}


def _mean(values: np.ndarray, size: int) -> np.ndarray:
    """Average the points of each pixel: (FINE * size,) * 2 -> (size, size)."""
    return values.reshape(size, FINE, size, FINE).mean(axis=(1, 3))


def _grains(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Draw Gaussian noise (size, size) of unit SD, correlated over `sigma` pixels."""
    noise = gaussian_filter(rng.standard_normal((size, size)), sigma)
    return noise / noise.std()
