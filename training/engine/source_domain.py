# SPDX-License-Identifier: Apache-2.0
"""The source domain: its training and validation cases, and its intensity rule."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.volume_io import read_volume

from ..data.dataset import Case, Dataset, check_dataset, choose_cases, read_dataset
from .config import CasesConfig, ScansConfig

FULL_RANGE = (-1023.0, 1024.0)


@dataclass(frozen=True)
class Source:
    """The source domain.

    Attributes:
        dataset: with the chosen cases, training and validation.
        modality: "CT" or "MR", by the configuration or else by the dataset.
    """

    dataset: Dataset
    modality: str
    training: list[Case]
    validation: list[Case]


def open_source(
    dataset_folder: Path,
    data: CasesConfig,
    tell: Callable[[str], None] = lambda line: None,
    check: bool = True,
) -> Source:
    """Read a dataset, divide its cases, and open every volume to check it.

    Args:
        tell: called with a line for the user.
        check: open every volume; only the main process does.

    Raises:
        DatasetError, ConfigError, VolumeError.
    """
    dataset = choose_cases(read_dataset(dataset_folder), data.cases)
    if data.modality != "auto":
        dataset = replace(dataset, modality=data.modality, remark="")
    training, validation = split(dataset.cases, data)
    tell(f"Checking {len(dataset.cases)} cases of {dataset.name} ...")
    if check:
        for warning in check_dataset(dataset):
            tell(f"Warning: {warning}")
    return Source(dataset, dataset.modality, training, validation)


def split(cases: Sequence[Case], data: CasesConfig) -> tuple[list[Case], list[Case]]:
    """Split cases into training and validation, by the validation patterns or else by fold.

    Raises:
        ConfigError: nothing is left to train on, or a pattern matches no case.
    """
    if data.validation:
        held_out = _chosen(cases, data.validation)
        if not held_out:
            raise ConfigError(f"No case matches data.validation {data.validation}.")
    elif data.folds:
        held_out = tuple(cases[data.fold % data.folds :: data.folds])
    else:
        held_out = ()
    training = [case for case in cases if case not in held_out]
    if not training:
        raise ConfigError("No case is left to train on; check data.validation and data.folds.")
    return training, list(held_out)


def intensity_rule(data: ScansConfig, modality: str, training: Sequence[Case]) -> IntensityRule:
    """Find the source's rule; a CT window that is not given is the one of all images."""
    if modality != "CT":
        return IntensityRule(modality, maximum_percentile=data.maximum_percentile)
    if data.window:
        return IntensityRule("CT", window=data.window)
    limits = set()
    for case in training:
        array = read_volume(case.image).array
        limits.add((float(array.min()), float(array.max())))
        if len(limits) > 1:
            break
    clipped = len(limits) == 1 and len(training) > 1  # a lone case says nothing
    return IntensityRule("CT", window=limits.pop() if clipped else FULL_RANGE)


def _chosen(cases: Sequence[Case], patterns: Sequence[str]) -> tuple[Case, ...]:
    return tuple(c for c in cases if any(fnmatch.fnmatchcase(c.name, p) for p in patterns))
