# SPDX-License-Identifier: Apache-2.0
"""Agreement of precisions and processors on organs, and of the kept piece with the true organ.

    python -m srcsm_training.experiments.agreement --data ../shared/data

The first table compares `srcsm segment` with the same in bfloat16, and with the same as computed on
a processor that has AVX2 alone. The second compares the piece of every organ that is kept, the one
that the network is surest of, with the one that overlaps the true organ most. They are in
BENCHMARKS.md.
"""

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy import ndimage

from srcsm_training.data.dataset import Dataset, choose_cases, read_case, read_dataset
from srcsm_training.experiments.reports import CT, DATA, MR
from SRCSMSegmenterLib.components import dice, keep_largest_component
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import load_bundle
from SRCSMSegmenterLib.models.catalogue import find_model
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.source_matching import wanted
from SRCSMSegmenterLib.volume_io import read_volume

AIM = 0.5
"""Per cent of an organ's voxels that may differ."""

AS_ON_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@dataclass(frozen=True, eq=False)
class Found:
    """A scan's labels and their confidence before any clean-up, (K, J, I)."""

    labels: np.ndarray
    confidence: np.ndarray

    def kept(self) -> np.ndarray:
        """Return the labels of the pieces that are kept."""
        labels = self.labels.copy()
        keep_largest_component(labels, self.confidence.copy())
        return labels


def find(model: str, image: Path, modality: str, bfloat16: bool = False) -> Found:
    """Segment a scan on the CPU, with source matching if it is of another modality."""
    bundle = load_bundle(find_model(model))
    matching = wanted("auto", modality, bundle.description.rule)
    with in_bfloat16(bfloat16):
        found = segment(
            read_volume(image),
            bundle,
            modality=modality,
            source_matching=matching,
            device="cpu",
            keep_largest=False,
        )
    return Found(found.labels.array, found.confidence())


@contextmanager
def in_bfloat16(enabled: bool) -> Iterator[None]:
    """Let networks compute in bfloat16."""
    forward = UNet.forward

    def reduced(network: UNet, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(network, x).float()

    with mock.patch.object(UNet, "forward", reduced if enabled else forward):
        yield


@contextmanager
def child_with_avx2() -> Iterator[ProcessPoolExecutor]:
    """Yield a child process that computes as on a processor with AVX2 alone."""
    with mock.patch.dict(os.environ, AS_ON_AVX2):
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()  # started while the variables are set
    with pool:
        yield pool


def differences(one: np.ndarray, other: np.ndarray, labels: Sequence[int]) -> list[float]:
    """Compute the voxels of each label that differ, in per cent of those of `other`."""
    return [
        100 * int(((one == label) != (other == label)).sum()) / max(int((other == label).sum()), 1)
        for label in labels
    ]


def pieces(found: Found, truth: np.ndarray, label: int) -> tuple[float, float]:
    """Compute the Dice of the kept piece, and of the piece that overlaps the truth most."""
    mask, organ = found.labels == label, truth == label
    components, _ = ndimage.label(mask)
    overlaps = np.bincount(components[mask & organ], minlength=1)
    kept = dice(found.kept() == label, organ, empty=1.0)
    if not overlaps.any():
        return kept, kept
    return kept, dice(components == int(overlaps.argmax()), organ, empty=1.0)


def compare(model: str, dataset: Dataset, pool: ProcessPoolExecutor) -> tuple[str, str, str]:
    """Compare all scans; return a row for bfloat16, one for AVX2, and one for the pieces."""
    labels = list(dataset.labels.values())
    every: tuple[list[float], list[float], list[tuple[float, float]]] = ([], [], [])
    for case in dataset.cases:
        here = find(model, case.image, dataset.modality)
        reduced = find(model, case.image, dataset.modality, bfloat16=True)
        avx2 = pool.submit(find, model, case.image, dataset.modality).result()
        every[0].extend(differences(reduced.kept(), here.kept(), labels))
        every[1].extend(differences(avx2.kept(), here.kept(), labels))
        truth = read_case(case)[1].array
        every[2].extend(pieces(here, truth, label) for label in labels)
    name = f"| {model} | {dataset.modality}, {len(dataset.cases)} |"
    kept, best = np.transpose(every[2])
    return (
        f"{name} bf16 {_spread(every[0])}",
        f"{name} fp32, AVX2 alone {_spread(every[1])}",
        f"{name} {kept.mean():.3f} | {best.mean():.3f} | {(best > kept).sum()} of {len(kept)} |",
    )


def _spread(values: Sequence[float]) -> str:
    over = sum(value > AIM for value in values)
    return f"| {np.median(values):.2f} | {max(values):.2f} | {over} of {len(values)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--models", nargs="+", default=["abdomen-ct", "abdomen-mr"])
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN")
    arguments = parser.parse_args(argv)
    precisions, kept = [], []
    with child_with_avx2() as pool:
        for model in arguments.models:
            for folder in (CT, MR):
                dataset = choose_cases(read_dataset(arguments.data / folder), arguments.cases)
                *rows, last = compare(model, dataset, pool)
                precisions += rows
                kept.append(last)
    print("| network | scans | with | median, % | largest, % | above 0.5% |")
    print("| --- | --- | --- | --- | --- | --- |", *precisions, sep="\n")
    print("\n| network | scans | piece kept | piece that overlaps most | another piece |")
    print("| --- | --- | --- | --- | --- |", *kept, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
