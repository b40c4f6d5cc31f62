# SPDX-License-Identifier: Apache-2.0
"""Slice sets as `style prepare` and `style swap` write them, made without a network."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from srcsm_training.engine.limits import Limits
from srcsm_training.style.config import PrepareConfig, StyleConfig
from srcsm_training.style.phantom_slices import FINE, render, slice_of_patient
from srcsm_training.style.prepare import prepare
from srcsm_training.style.slices import (
    Slice,
    SliceSet,
    read_picture,
    read_slices,
    write_manifest,
    write_picture,
)
from SRCSMSegmenterLib.phantom.anatomy import LABELS, draw_patient
from SRCSMSegmenterLib.phantom.scans import LABEL_OF


def prepared(data: Path, folder: Path, size: int = 32, **options: object) -> SliceSet:
    """The source set of `tiny`'s dataset, a picture of 60 mm per slice with foreground."""
    chosen = PrepareConfig(**{"field_of_view": 60.0, "foreground": 0.001, **options})
    prepare(
        data, folder, StyleConfig(size=size, prepare=chosen), limits=Limits(say=lambda line: None)
    )
    return read_slices(folder)


def restyled(
    source: SliceSet,
    folder: Path,
    styles: dict[str, Callable[[Slice, np.ndarray], np.ndarray]],
) -> SliceSet:
    """A restyled set: a function of slice and picture for every style."""

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, folder)).as_posix()

    made = []
    for s in source.slices:
        for style, look in styles.items():
            path = f"images/{s.name}_{style}.png"
            digest = write_picture(folder / path, look(s, read_picture(source, s.image)))
            made.append(
                replace(
                    s,
                    name=f"{s.name}_{style}",
                    image=path,
                    mask=relative(source.folder / s.mask),
                    image_sha256=digest,
                    style=style,
                    prompt=f"a slice in the style {style}",
                    seed=len(made),
                    source=s.name,
                )
            )
    found = replace(
        source, folder=folder, slices=tuple(made), cases={}, source=relative(source.folder)
    )
    write_manifest(found)
    return read_slices(folder)


def two_looks(
    folder: Path, styles: Sequence[str] = ("t2",), patients: int = 4, size: int = 96
) -> tuple[SliceSet, dict[tuple[str, str], np.ndarray]]:
    """Phantom slices in CT as a source set, and the same anatomy in other looks.

    Returns:
        The set, and the pictures by the slice's name and the style.
    """
    labels = {name: value for name, value in LABELS.items() if value}
    names = {value: name for name, value in labels.items()}
    made, others = [], {}
    for seed in range(patients):
        patient = draw_patient(np.random.default_rng([seed, 0]))
        for number in range(3):
            rng = np.random.default_rng([seed, 1, number])
            tissues, grid = slice_of_patient(patient, rng, size)
            mask = LABEL_OF[tissues][FINE // 2 :: FINE, FINE // 2 :: FINE]
            counts = np.bincount(mask.ravel(), minlength=len(labels) + 1)
            stem = f"patient_{seed}_K{number:03d}"
            paths = [f"{kind}/{stem}.png" for kind in ("images", "masks")]
            arrays = (render(tissues, "ct", rng, size), mask)
            sums = [
                write_picture(folder / path, array)
                for path, array in zip(paths, arrays, strict=True)
            ]
            others |= {(stem, style): render(tissues, style, rng, size) for style in styles}
            made.append(
                Slice(
                    name=stem,
                    case=f"patient_{seed}",
                    image=paths[0],
                    mask=paths[1],
                    image_sha256=sums[0],
                    mask_sha256=sums[1],
                    style="ct",
                    pixels={names[v]: int(counts[v]) for v in names if counts[v]},
                    affine=grid.affine.ravel().tolist(),
                )
            )
    settings = {"stage": "prepare", "window": [-125.0, 275.0]}
    source = SliceSet(folder, "Phantom", "CT", labels, size, settings, tuple(made), complete=True)
    write_manifest(source)
    return read_slices(folder), others
