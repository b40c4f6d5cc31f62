# SPDX-License-Identifier: Apache-2.0
"""The source domain: its training and validation cases, and its intensity rule."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.source_matching import SourceHistogram, fit, to_integers
from SRCSMSegmenterLib.volume_io import read_volume

from ..data.cases import PreparedCase, default_cache, place_case, prepare_cases
from ..data.dataset import (
    Case,
    Dataset,
    case_content,
    check_dataset,
    choose_cases,
    read_dataset,
)
from ..data.packed import PackedDataset, is_packed, read_packed
from .config import CasesConfig, ScansConfig

FULL_RANGE = (-1023.0, 1024.0)


@dataclass(frozen=True)
class Source:
    """The source domain.

    Attributes:
        dataset: with the chosen cases, training and validation.
        modality: "CT" or "MR", by the configuration or else by the dataset.
        packed: the prepared cases, if the dataset is packed; then there are no scans to read.
    """

    dataset: Dataset
    modality: str
    training: list[Case]
    validation: list[Case]
    packed: PackedDataset | None = None

    @property
    def cases(self) -> tuple[Case, ...]:
        """The training cases, then the validation cases."""
        return (*self.training, *self.validation)

    def contents(self) -> dict[str, str]:
        """Return the sizes and SHA-256 that identify the cases, by name.

        Raises:
            DatasetError: a file cannot be read.
        """
        if self.packed:
            return {case.name: self.packed.contents[case.name] for case in self.cases}
        return {case.name: case_content(case) for case in self.cases}

    def histogram(self, rule: IntensityRule) -> SourceHistogram:
        """Add up the histograms of the training scans, for source matching."""
        if self.packed:
            return self.packed.histogram(self.training)
        return fit(to_integers(read_volume(case.image).array, rule) for case in self.training)

    def prepared(
        self,
        rule: IntensityRule,
        smoothing: float,
        grid: GridSpec,
        cache: Path | None,
        order: Sequence[int] = (),
        outputs: int = 255,
    ) -> list[PreparedCase]:
        """Prepare `cases`; see `prepare_cases`.

        Args:
            cache: None: `default_cache`. A packed dataset needs none.
        """
        if self.packed:
            return [
                place_case(case.name, self.packed.prepared_tensors(case), grid, order, outputs)
                for case in self.cases
            ]
        folder = cache or default_cache()
        return prepare_cases(self.cases, rule, smoothing, grid, folder, order, outputs)

    def require_scans(self, what: str) -> None:
        """Check that there are scans to read.

        Args:
            what: needs them.

        Raises:
            ConfigError: the dataset is packed.
        """
        if self.packed:
            raise ConfigError(
                f"{what} needs the scans, which {self.dataset.folder} does not hold; give the "
                "dataset's folder."
            )


def open_source(
    dataset_folder: Path,
    data: CasesConfig,
    tell: Callable[[str], None] = lambda line: None,
    check: bool = True,
) -> Source:
    """Read a dataset, divide its cases, and open every volume to check it.

    Args:
        dataset_folder: an nnU-Net raw dataset, or a packed dataset, which was checked before.
        tell: called with a line for the user.
        check: open every volume; only the main process does.

    Raises:
        DatasetError, ConfigError, VolumeError.
    """
    packed = read_packed(dataset_folder) if is_packed(Path(dataset_folder)) else None
    dataset = choose_cases(packed.dataset if packed else read_dataset(dataset_folder), data.cases)
    if data.modality != "auto":
        dataset = replace(dataset, modality=data.modality, remark="")
    training, validation = split(dataset.cases, data)
    if packed:
        tell(f"{len(dataset.cases)} packed cases of {dataset.name}.")
        return Source(dataset, dataset.modality, training, validation, packed)
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


def intensity_rule(data: ScansConfig, source: Source) -> IntensityRule:
    """Find the source's rule; a CT window that is not given is the one of all training images.

    Raises:
        ConfigError: the cases of a packed dataset were prepared by another rule.
    """
    if source.packed:
        return _packed_rule(data, source)
    if source.modality != "CT":
        return IntensityRule(source.modality, maximum_percentile=data.maximum_percentile)
    if data.window:
        return IntensityRule("CT", window=data.window)
    limits = set()
    for case in source.training:
        array = read_volume(case.image).array
        limits.add((float(array.min()), float(array.max())))
        if len(limits) > 1:
            break
    clipped = len(limits) == 1 and len(source.training) > 1  # a lone case says nothing
    return IntensityRule("CT", window=limits.pop() if clipped else FULL_RANGE)


def _packed_rule(data: ScansConfig, source: Source) -> IntensityRule:
    rule, smoothing = source.packed.rule, source.packed.smoothing
    wanted = {
        "data.modality": (source.modality, rule.modality),
        "data.window": (data.window or rule.window, rule.window),
        "data.maximum_percentile": (data.maximum_percentile, rule.maximum_percentile),
        "data.smoothing": (data.smoothing, smoothing),
    }
    for key, (asked, packed) in wanted.items():
        if asked != packed:
            raise ConfigError(
                f"{key} is {asked}, but the cases in {source.dataset.folder} were prepared with "
                f"{packed}; pack the dataset anew for this training."
            )
    return rule


def _chosen(cases: Sequence[Case], patterns: Sequence[str]) -> tuple[Case, ...]:
    return tuple(c for c in cases if any(fnmatch.fnmatchcase(c.name, p) for p in patterns))
