# SPDX-License-Identifier: Apache-2.0
"""Publishing: the mean of a network and of the one that it went on from."""

from dataclasses import replace

import pytest
import torch
from random_network import a_random_bundle

from srcsm_training.experiments.publish import mean_bundle
from SRCSMSegmenterLib.errors import BundleError


def test_the_mean_lies_between_and_keeps_all_else():
    start = a_random_bundle("start")
    doubled = {name: 2 * value for name, value in start.weights.items()}
    trained = replace(
        a_random_bundle("trained"),
        weights=doubled,
        description=replace(start.description, name="trained", version="0.2.0"),
    )
    mean = mean_bundle(start, trained)
    for name, value in start.weights.items():
        torch.testing.assert_close(mean.weights[name], 1.5 * value)
    assert (mean.description.name, mean.description.version) == ("trained", "0.2.0")
    assert mean.description.training["weights"].endswith("of those of start 0.1.0, the start")
    assert "weights" not in trained.description.training


def test_networks_of_other_organs_have_no_mean():
    start = a_random_bundle("start")
    liver, spleen = start.description.labels
    swapped = (replace(spleen, value=1), replace(liver, value=2))
    other = replace(start, description=replace(start.description, labels=swapped))
    with pytest.raises(BundleError, match='The mean of "start" and "start"'):
        mean_bundle(start, other)


def test_networks_of_other_intensities_have_no_mean():
    start = a_random_bundle("start")
    rule = replace(start.description.rule, quantiles=(0.1, 0.9))
    other = replace(start, description=replace(start.description, rule=rule))
    with pytest.raises(BundleError, match="intensities differ"):
        mean_bundle(start, other)
