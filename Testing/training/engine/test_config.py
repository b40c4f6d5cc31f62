# SPDX-License-Identifier: Apache-2.0
"""Configurations: what is written is what is read, and every slip is named where it was made."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import yaml

from srcsm_training.augment.spatial import AugmentationConfig
from srcsm_training.engine.config import (
    from_dict,
    parse_yaml,
    read_yaml,
    to_dict,
    with_overrides,
    write_yaml,
)
from srcsm_training.segmentation.config import DataConfig, OptimisationConfig, TrainingConfig
from srcsm_training.segmentation.presets import PRESETS, preset
from SRCSMSegmenterLib.errors import ConfigError, SRCSMError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.network import NetworkConfig

BASE = TrainingConfig(
    grid=GridSpec((32, 24, 16), (2.0, 2.5, 3.0)),
    network=NetworkConfig(classes=2, channels=(4, 8, 12), norm="instance"),
    optimisation=OptimisationConfig(schedule="cosine"),
)

CHANGED = {
    "augmentation.crop": 0.1,
    "data.outputs": ("liver", "spleen"),
    "degradation.bias": 0.25,
    "degradation.chance": 0.5,
    "degradation.coarseness": 2.0,
    "degradation.noise": 0.05,
    "regions.affine": 0.25,
    "regions.clusters": (2, 4),
    "regions.divided": 0.25,
    "regions.divided_labels": 0.2,
    "regions.kept": 0.2,
    "regions.kept_air": 0.25,
    "regions.share": 0.75,
    "regions.slope": (0.5, 2.0),
    "regions.untouched": 0.2,
    "start": "abdomen-ct",
    "grid.size": (64, 32, 8),
    "grid.spacing": (1.0, 2.5, 3.25),
    "grid.axes": "slices",
    "network.classes": 7,
    "network.channels": (8, 16, 24),
    "network.stem": (1, 2, 1),
    "network.kernel": (3, 5, 1),
    "network.pooling": (2, 1, 2),
    "network.norm": "none",
    "network.dropout": 0.25,
    "network.pool_by": "max",
    "network.decoder": (8, 12),
    "data.cases": ("a*", "b"),
    "data.validation": ("c",),
    "data.folds": 3,
    "data.fold": 2,
    "data.modality": "MR",
    "data.window": (-100.0, 300.0),
    "data.maximum_percentile": 99.5,
    "data.smoothing": 0.5,
    "data.foreground": 0.25,
    "augmentation.translation": 1.5,
    "augmentation.rotation": (0.1, 0.2, 0.3),
    "augmentation.scale": 0.05,
    "augmentation.axis_scale": 0.06,
    "augmentation.elastic": 2.0,
    "augmentation.control_points": 6,
    "augmentation.shift": 0.1,
    "augmentation.contrast": 0.3,
    "augmentation.strong": 0.5,
    "optimisation.steps": 17,
    "optimisation.batch": 3,
    "optimisation.accumulation": 2,
    "optimisation.learning_rate": 2e-4,
    "optimisation.schedule": "constant",
    "optimisation.l2": 1e-5,
    "optimisation.dice": "mean",
    "optimisation.cross_entropy": 0.5,
    "optimisation.clip_factor": 4.0,
    "optimisation.clip_start": 9.0,
    "optimisation.clip_rate": 0.02,
    "optimisation.ema": 0.9,
    "optimisation.nan_redraws": 5,
    "optimisation.precision": "fp16",
    "optimisation.patience": 3,
    "optimisation.optimiser": "adamw",
    "pairs.use": True,
    "pairs.styled": ("slices/a", "slices/b"),
    "pairs.contrast": 0.5,
    "pairs.temperature": 0.1,
    "pairs.projection": 64,
    "random_convolution": "hard",
    "seed": 5,
    "checkpoint_minutes": 1.5,
    "validate_every": 12,
}
"""A value other than the base's for every key there is."""


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def leaves(config, prefix=""):
    for field in fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name


def override(key, value):
    """As one types it: key=value in YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    return f"{key}={yaml.safe_dump(plain, default_flow_style=True).removesuffix('...').strip()}"


def refused(*overrides):
    with pytest.raises(SRCSMError) as caught:
        with_overrides(BASE, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_key_is_known_here_and_its_other_value_is_another():
    assert set(CHANGED) == set(leaves(BASE))
    assert [key for key, value in CHANGED.items() if value_of(BASE, key) == value] == []


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_preset_survives_yaml(tmp_path, config):
    write_yaml(tmp_path / "config.yaml", config)
    assert read_yaml(tmp_path / "config.yaml", BASE) == config


def test_every_value_survives_yaml_and_overrides(tmp_path):
    config = with_overrides(BASE, [override(key, value) for key, value in CHANGED.items()])
    assert {key: value_of(config, key) for key in CHANGED} == CHANGED
    assert all(type(value_of(config, key)) is type(CHANGED[key]) for key in CHANGED)
    write_yaml(tmp_path / "config.yaml", config)
    assert read_yaml(tmp_path / "config.yaml", BASE) == config
    assert from_dict(to_dict(config), BASE) == config


@pytest.mark.parametrize("key", CHANGED)
def test_one_override_changes_one_value(key):
    config = with_overrides(BASE, [override(key, CHANGED[key])])
    assert [name for name in CHANGED if value_of(config, name) != value_of(BASE, name)] == [key]


def test_a_file_changes_what_it_names_and_no_more(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optimisation:\n  steps: 12\ngrid: {spacing: [1, 2, 3]}\n")
    config = read_yaml(file, BASE)
    assert config.optimisation == replace(BASE.optimisation, steps=12)
    assert config.grid == replace(BASE.grid, spacing=(1.0, 2.0, 3.0))
    assert replace(config, grid=BASE.grid, optimisation=BASE.optimisation) == BASE
    file.write_text("")
    assert read_yaml(file, BASE) == BASE


def test_later_overrides_win_and_none_changes_nothing():
    assert with_overrides(BASE, ["seed=3", "seed=4"]).seed == 4
    assert with_overrides(BASE, []) == BASE


def test_overrides_that_only_fit_together_are_taken_in_any_order():
    both = ["grid.size=[30, 30, 10]", "network.channels=[4, 8]"]
    for overrides in (both, both[::-1]):
        config = with_overrides(BASE, overrides)
        assert config.grid.size == (30, 30, 10)
        assert config.network.channels == (4, 8)
        assert config.grid.spacing == BASE.grid.spacing
    assert "multiple of" in refused(both[0])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("optimization.steps=3", "optimisation"),
        ("sed=3", "seed"),
        ("grid.sise=[8, 8, 8]", "size"),
        ("network.chanels=[4]", "channels"),
        ("data.folts=4", "folds"),
        ("augmentation.rotations=[0, 0, 0]", "rotation"),
        ("optimisation.learning-rate=1e-3", "learning_rate"),
        ("random_convolutions=off", "random_convolution"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(written, meant):
    message = refused(written)
    wrong = written.split("=")[0]
    assert wrong in message or wrong.split(".")[0] in message
    assert f"did you mean {meant}?" in message


def test_a_key_like_no_other_is_refused_without_a_guess():
    assert "qqqqq" in refused("optimisation.qqqqq=1")
    assert "did you mean" not in refused("optimisation.qqqqq=1")


def test_an_unknown_key_in_a_file_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optimisation:\n  step: 12\n")
    with pytest.raises(ConfigError, match=r"optimisation\.step \(did you mean steps\?\)"):
        read_yaml(file, BASE)


@pytest.mark.parametrize(
    ("written", "needs"),
    [
        ("optimisation.steps=2.5", "a valid integer"),
        ("optimisation.steps=many", "a valid integer"),
        ("optimisation.steps=true", "a valid integer"),
        ("optimisation.steps=", "a valid integer"),
        ("optimisation.steps.more=1", "a valid integer"),
        ("optimisation.learning_rate=fast", "a valid number"),
        ("optimisation.learning_rate=true", "a valid number"),
        ("optimisation.learning_rate=.nan", "a finite number"),
        ("checkpoint_minutes=.inf", "a finite number"),
        ("checkpoint_minutes=nan", "a valid number"),
        ("optimisation.schedule=3", "a valid string"),
        ("augmentation.contrast=[1]", "a valid number"),
        ("grid.spacing=[1, 2, x]", "a valid number"),
        ("grid.size=[16, 16, 8.5]", "a valid integer"),
        ("grid.size=[16, 16]", "grid.size[2] is missing"),
        ("network.stem=2", "network.stem[1] is missing"),
        ("augmentation.rotation=[0.1, 0.1, 0.1, 0.1]", "at most 3 values"),
        ("data.cases={a: 1}", "a list"),
        ("pairs.use=on", "true or false"),
        ("grid=3", "keys and values"),
        ("optimisation=[1, 2]", "keys and values"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(written, needs):
    message = refused(written)
    assert written.split("=")[0].removesuffix(".more") in message
    assert needs in message


@pytest.mark.parametrize(
    ("written", "named"),
    [
        (["optimisation.schedule=linear"], "constant, cosine, icm"),
        (["optimisation.optimiser=sgd"], "adam, adamw"),
        (["optimisation.patience=-1"], "optimisation.patience"),
        (["pairs.temperature=0"], "pairs.temperature"),
        (["pairs.contrast=-1"], "pairs.contrast"),
        (["pairs.projection=0"], "pairs.projection"),
        (["optimisation.dice=soft"], "generalised, mean, batch"),
        (["optimisation.precision=fp8"], "fp32, bf16, fp16"),
        (["random_convolution=on"], "off, global, hard, smoothed"),
        (["random_convolution=soft"], "off, global, hard, smoothed"),
        (["data.modality=PET"], "auto, CT, MR"),
        (["data.window=[5]"], "data.window"),
        (["data.fold=5"], "data.fold"),
        (["data.fold=-1"], "data.fold"),
        (["optimisation.steps=0"], "optimisation.steps"),
        (["optimisation.batch=0"], "optimisation.batch"),
        (["augmentation.control_points=3"], "control_points"),
        (["grid.size=[32, 24, 0]"], "window"),
        (["grid.size=[32, 22, 16]"], "along J is not a multiple of 4"),
        (["network.kernel=[3, 2, 3]"], "kernel"),
        (["network.classes=1"], "two classes"),
        (["seed"], "key=value"),
        (["grid.size=[1, 2"], "no YAML"),
        (["grid=3", "grid.size=[8, 8, 8]"], "grid"),
    ],
)
def test_an_impossible_value_is_refused(written, named):
    assert named in refused(*written)


def test_numbers_are_taken_as_people_write_them():
    config = with_overrides(
        BASE,
        [
            "optimisation.learning_rate=5e-5",  # text to YAML
            "optimisation.clip_start=10",
            "data.window=[-100, 3e2]",
            "data.cases=BTCV_*",
            "augmentation.contrast=null",
            "random_convolution=off",  # false to YAML
        ],
    )
    assert config.optimisation.learning_rate == 5e-5
    assert type(config.optimisation.clip_start) is float
    assert config.data.window == (-100.0, 300.0)
    assert config.data.cases == ("BTCV_*",)
    assert config.augmentation.contrast is None
    assert config.random_convolution == "off"


def test_yaml_is_read_as_people_mean_it():
    """YAML 1.1 has 8, 45045, True and a date for these."""
    assert [parse_yaml(text, "it") for text in ("010", "12:30:45", "on", "2020-01-01")] == [
        10.0,
        "12:30:45",
        "on",
        "2020-01-01",
    ]
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"
    for text in (bomb, "[" * 1000, "a: b: c", "\x1b", "a: 1\nb: {c: 1, c: 2}"):
        with pytest.raises(ConfigError, match=r"^it is no YAML"):
            parse_yaml(text, "it")


def test_an_unreadable_file_is_one_sentence(tmp_path):
    file = tmp_path / "mine.yaml"
    for content in (b"grid: [1, 2", b"\xff\xfe\x00 grid", b"- a\n- b\n"):
        file.write_bytes(content)
        with pytest.raises(ConfigError):
            read_yaml(file, BASE)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml", BASE)


# --- presets: the numbers of Thaler et al. 2026, field of view


@pytest.mark.parametrize(
    ("name", "size", "spacing", "extent"),
    [
        ("abdomen-paper", (160, 128, 160), 2.4, (384, 307.2, 384)),
        ("abdomen-half", (80, 64, 80), 4.8, (384, 307.2, 384)),
        ("heart-paper", (128, 128, 128), 1.5, (192, 192, 192)),
        ("heart-small", (96, 96, 96), 2.0, (192, 192, 192)),
        ("prostate-paper", (128, 128, 128), 0.75, (96, 96, 96)),
    ],
)
def test_the_papers_fields_of_view_and_recipe(name, size, spacing, extent):
    config = preset(name)
    assert config.grid.size == size
    assert config.grid.spacing == (spacing,) * 3
    np.testing.assert_allclose(config.grid.extent, extent)
    assert config.grid.axes == "patient"
    network = config.network
    assert (network.channels, network.kernel, network.pooling) == ((64,) * 5, (3,) * 3, (2,) * 3)
    assert (network.stem, network.norm, network.dropout) == ((1, 1, 1), "none", 0.1)
    recipe = config.optimisation
    assert (recipe.steps, recipe.batch, recipe.learning_rate) == (50_000, 1, 5e-5)
    assert (recipe.dice, recipe.cross_entropy, recipe.l2) == ("generalised", 0, 1e-6)
    assert (recipe.clip_factor, recipe.clip_start, recipe.clip_rate) == (5, 10, 0.01)
    assert (recipe.ema, recipe.nan_redraws, recipe.schedule) == (0.999, 100, "constant")
    assert recipe.precision == "auto"
    around = config.augmentation
    assert around == AugmentationConfig(
        translation=20,
        rotation=(0.35, 0.35, 0.35),
        scale=0.2,
        axis_scale=0.1,
        elastic=15,
        control_points=8,
        shift=0.2,
        contrast=None,  # 0.2 for CT, 0.4 for MR
    )
    assert config.random_convolution == "smoothed"
    assert config.data == DataConfig()
    assert config.data.smoothing == 1.0


def test_the_published_recipe_of_icm():
    """The slice network of Chen et al. 2025."""
    config = preset("icm")
    network, recipe, pairs = config.network, config.optimisation, config.pairs
    assert network.channels == (32, 64, 128, 256, 512 // 2)
    assert network.decoder == (32, 32, 64, 128)
    assert (network.kernel, network.pooling, network.stem) == ((3, 3, 1), (2, 2, 1), (1, 1, 1))
    assert (network.norm, network.pool_by) == ("switchable", "max")
    assert (recipe.optimiser, recipe.learning_rate, recipe.l2) == ("adamw", 1e-3, 1e-5)
    assert (recipe.batch, recipe.schedule, recipe.dice) == (64, "icm", "batch")
    assert (recipe.steps, recipe.patience) == (100 * config.validate_every, 40)
    assert (pairs.contrast, pairs.temperature, pairs.projection) == (1.0, 0.2, 128)
    assert config.grid.size[2] == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_window_fits_its_network(name):
    config = preset(name)
    assert [n % d for n, d in zip(config.grid.size, config.network.divisor, strict=True)] == [0] * 3
    pairs = name.startswith("icm")
    assert (config.random_convolution, config.pairs.use) == (
        ("off", True) if pairs else ("smoothed", False)
    )


@pytest.mark.parametrize("region", ["abdomen", "heart", "prostate"])
def test_every_region_has_a_paper_and_a_fast_preset(region):
    paper, fast = preset(f"{region}-paper"), preset(f"{region}-fast")
    # In the plane both see the same part of the body.
    np.testing.assert_allclose(fast.grid.extent[:2], paper.grid.extent[:2], rtol=0.1)


def test_an_unknown_preset_is_refused_with_the_nearest_right_one():
    with pytest.raises(ConfigError, match="did you mean abdomen-fast"):
        preset("abdomen_fast")
