# SPDX-License-Identifier: Apache-2.0
"""Keys of configurations: ranges that are refused, and help that every key has."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import yaml

from srcsm_training.engine.config import as_yaml, from_dict, to_dict, with_overrides
from srcsm_training.engine.keys import Range, Settings, choice, describe, key, keys_of
from srcsm_training.sam.decoder import DecoderConfig
from srcsm_training.sam.deeplab_config import DeepLabConfig
from srcsm_training.sam.from_scratch import SamConfig
from srcsm_training.segmentation.presets import preset
from srcsm_training.style.config import StyleConfig
from SRCSMSegmenterLib.errors import ConfigError


@dataclass(frozen=True)
class Oven(Settings):
    """An oven.

    Attributes:
        heat, cold: of the middle of the oven, which is reached
            after a while.
        mode: "air" or "grill".
    """

    heat: float = key(180.0, Range(least=50, below=300), unit="degrees", paper="200")
    cold: tuple[float, ...] = key((4.0, 8.0), Range(above=0))
    mode: str = key("air", choice("air", "grill", "steam"))

    section: ClassVar[str] = "oven."


@dataclass(frozen=True)
class Kitchen(Settings):
    """A kitchen."""

    oven: Oven = field(default_factory=Oven)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("oven.heat=300", "oven.heat is at least 50 and under 300, not 300.0."),
        ("oven.heat=49.9", "oven.heat is at least 50 and under 300, not 49.9."),
        ("oven.cold=[1, 0]", "oven.cold is over 0, not [1.0, 0.0]."),
        ("oven.mode=wood", "oven.mode is one of air, grill, steam, not 'wood'."),
    ],
)
def test_values_out_of_range_are_refused_with_their_key_and_range(override, message):
    with pytest.raises(ConfigError) as refusal:
        with_overrides(Kitchen(), [override])
    assert str(refusal.value) == message
    with_overrides(Kitchen(), ["oven.heat=50", "oven.heat=299.9", "oven.cold=[]"])


def test_code_cannot_leave_a_range_either():
    with pytest.raises(ConfigError, match="heat is at least 50"):
        replace(Oven(), heat=0.0)


def test_a_key_is_described_with_value_meaning_range_unit_and_paper():
    assert describe(Kitchen(), "oven.heat") == (
        "oven.heat = 180\n"
        "    Of the middle of the oven, which is reached after a while. At least 50 and under 300, "
        "in\n    degrees. Paper: 200."
    )
    text = describe(Kitchen(), "oven")
    assert text.startswith("oven\n    An oven.\noven.heat = 180\n")
    assert "oven.cold = [4, 8]\n    Of the middle of the oven" in text
    assert 'oven.mode = air\n    "air" or "grill". One of air, grill, steam.' in text


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [("heat", "oven.heat"), ("oven.haet", "oven.heat"), ("ovens", "oven")],
)
def test_a_key_that_does_not_exist_is_answered_with_the_nearest(wanted, hint):
    with pytest.raises(ConfigError, match=rf"{wanted} \(did you mean {hint}\?\)"):
        describe(Kitchen(), wanted)


CONFIGS = (
    preset("abdomen-paper"),
    preset("icm"),
    StyleConfig(),
    SamConfig(),
    DecoderConfig(),
    DeepLabConfig(),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_key_of_every_configuration_has_a_meaning(config):
    assert [entry.name for entry in keys_of(config) if not entry.text] == []


def test_published_values_stand_beside_ours():
    papers = {entry.name: entry.text for entry in keys_of(preset("abdomen-fast"))}
    assert papers["optimisation.learning_rate"].endswith("Paper: 5e-5 (ICM: 1e-3).")
    assert papers["network.channels"].endswith(
        "Paper: 64 at each of 5 levels (ICM: 32 to 512, bottleneck 256)."
    )
    style = {entry.name: entry.text for entry in keys_of(StyleConfig())}
    assert style["tune.learning_rate"].endswith("Paper: 2e-6 (DGInStyle).")
    assert "ICM" not in style["tune.batch"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_printed_configuration_is_commented_and_reads_back_the_same(config):
    text = as_yaml(config)
    assert text.count("# ") > 25
    assert max(map(len, text.splitlines())) <= 101
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config))), config) == config
    plain = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert yaml.safe_load("\n".join(plain)) == yaml.safe_load(text) == to_dict(config)


@pytest.mark.parametrize(
    "override",
    ["optimisation.learning_rate=-1", "optimisation.ema=2", "data.foreground=3", "seed=-1"],
)
def test_impossible_values_of_a_training_are_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        with_overrides(preset("abdomen-fast"), [override])


@pytest.mark.parametrize(
    ("config", "override"),
    [
        (SamConfig(), "tiles.margin=[0.9, 2]"),
        (SamConfig(), "tiles.contrast=1"),
        (SamConfig(), "tiles.side=0"),
        (SamConfig(), "boxes.exact=1.5"),
        (SamConfig(), "boxes.jitter=-1"),
        (SamConfig(), "prompts.mask=-0.1"),
        (SamConfig(), "validate_every=-1"),
        (DecoderConfig(), "theta1=75"),
        (DecoderConfig(), "jitter=-9"),
        (DecoderConfig(), "boxes=filter"),
        (DecoderConfig(), "optimisation.batch=0"),
        (DeepLabConfig(), "size=0"),
        (DeepLabConfig(), "optimisation.learning_rate=0"),
    ],
)
def test_impossible_values_of_a_sam_are_refused(config, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        with_overrides(config, [override])


def test_prompts_of_more_than_all_batches_are_refused():
    with pytest.raises(ConfigError, match=r"0\.6 and 0\.5 are more than 1 together"):
        with_overrides(SamConfig(), ["prompts.points=0.6", "prompts.mask=0.5"])


def test_published_values_of_the_sam_paper_stand_beside_ours():
    decoder = {entry.name: entry.text for entry in keys_of(DecoderConfig())}
    assert decoder["optimisation.steps"].endswith("Paper: 200 epochs.")
    assert decoder["theta1"].endswith("From 0 to 1. Paper: 0.75.")
    deeplab = {entry.name: entry.text for entry in keys_of(DeepLabConfig())}
    assert deeplab["optimisation.batch"].endswith("Paper: 8.")
