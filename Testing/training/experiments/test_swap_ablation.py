# SPDX-License-Identifier: Apache-2.0
"""The Style Swap ablation: four sets that differ in two U-Nets alone, and a table of them."""

import json

import pandas as pd
import pytest
import style_tiny
import tiny
import yaml

from srcsm_training.cli import main as cli
from srcsm_training.experiments import swap_ablation
from srcsm_training.experiments.reports import CT
from srcsm_training.experiments.style_ablation import DATASETS, PHANTOMS
from srcsm_training.experiments.swap_ablation import EVERY, VARIANTS, collect, report, stages
from srcsm_training.style.slices import read_slices

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def parsed(stage):
    return cli.make_parser().parse_args(["style", *stage.arguments])


def of(found, action):
    return [arguments for arguments in found if arguments.action == action]


@pytest.mark.parametrize("domain", DATASETS)
def test_the_sets_differ_in_the_two_u_nets_alone(tmp_path, domain):
    (tmp_path / "data" / CT).mkdir(parents=True)
    found = [parsed(stage) for stage in stages(domain, tmp_path / "data", tmp_path / "runs")]
    folder = tmp_path / "runs" / domain
    controls = {a.out: a for a in of(found, "control")}
    assert len(of(found, "base")) == len(of(found, "tune")) == 1
    drawn = {
        (controls[a.control].tuned is not None, a.tuned is not None): a for a in of(found, "swap")
    }
    assert drawn.keys() == {(False, False), (False, True), (True, False), (True, True)}
    for arguments in (*of(found, "tune"), *controls.values(), *drawn.values()):
        assert arguments.slices == folder / "slices"
        assert arguments.base == str(tmp_path / "runs" / "base")
        some = [f"swap.every={EVERY}"] if arguments.action == "swap" else []
        assert arguments.set == ([] if arguments is drawn[True, False] else some)
    assert drawn[True, False].out == folder / "slices" / "styled" / "abdomen"
    assert [a.slices for a in of(found, "check")] == [a.out for a in of(found, "swap")]


@pytest.mark.parametrize("domain", DATASETS)
def test_one_base_serves_both_domains_and_never_sees_a_target(tmp_path, domain):
    (tmp_path / "data" / CT).mkdir(parents=True)
    found = [parsed(stage) for stage in stages(domain, tmp_path / "data", tmp_path)]
    (base,) = of(found, "base")
    assert base.slices == [tmp_path / "base-slices", tmp_path / "real" / "slices"]
    sources = {a.data for a in of(found, "prepare")}
    assert sources <= {tmp_path / "data" / CT, tmp_path / "data" / next(iter(PHANTOMS))}


def test_a_finished_stage_is_not_run_again_and_a_failed_one_ends_it(tmp_path, monkeypatch):
    asked = []

    def launch(arguments):
        asked.append(arguments[0])
        out = cli.make_parser().parse_args(["style", *arguments]).out
        out.mkdir(parents=True, exist_ok=True)
        if arguments[0] == "tune":
            return 5
        if arguments[0] == "base":
            (out / "model_index.json").touch()
        else:
            content = {"format_version": 1, "name": "", "modality": "CT", "labels": {}, "size": 8}
            content |= {"slices": [], "settings": {}, "complete": True}
            (out / "manifest.json").write_text(json.dumps(content))
        return 0

    monkeypatch.setattr(swap_ablation, "launch", launch)
    monkeypatch.setattr(swap_ablation, "write_phantoms", lambda folder: None)
    given = ["--data", str(tmp_path / "none"), "--runs", str(tmp_path / "runs")]
    given += ["--results", str(tmp_path / "results")]
    assert swap_ablation.main(given) == 5
    assert swap_ablation.main(given) == 5
    assert asked == ["prepare", "phantom", "base", "tune", "tune"]


def test_the_table_says_what_check_found_and_dashes_where_nothing_was_run(tmp_path):
    for number, variant in enumerate(VARIANTS):
        folder = swap_ablation.swapped(tmp_path, variant)
        folder.mkdir(parents=True)
        styles = {
            name: {
                "slices": 8,
                "kept": 6 - number,
                "moved": 0.1 * number,
                "moved_over_all": 0.25,
                "between_styles": {"pet": 0.3 + 0.1 * number, "xray": 0.7},
                "edges": None if number == 1 else 0.6,
                "source_edges": 0.8,
            }
            for name in ("t1", "t2")
        }
        (folder / "check.json").write_text(json.dumps({"within_source": 0.04, "styles": styles}))
    found = collect(tmp_path)
    assert list(found["variant"]) == [v for v in VARIANTS for _ in range(2)]
    table = pd.DataFrame(found)
    table.to_csv(tmp_path / "swap_phantom.csv", index=False)
    rows = report(tmp_path).splitlines()
    assert rows[2] == "| phantom | tuned | original | t1 | 0.000 | 0.250 | 0.300 | 0.600 | 75% |"
    assert rows[5] == "| phantom | tuned | tuned | t2 | 0.100 | 0.250 | 0.400 | – | 62% |"
    assert rows[6] == "| phantom | untuned | original | t1 | 0.200 | 0.250 | 0.500 | 0.600 | 50% |"
    assert rows[10] == "| phantom | *source* | | | 0.040 | | | 0.800 | |"
    assert rows[11:] == [
        f"| real | {one} | {other} | – | – | – | – | – | – |" for one, other in VARIANTS.values()
    ]
    (swap_ablation.swapped(tmp_path, "untuned-tuned") / "check.json").unlink()
    collect(tmp_path).to_csv(tmp_path / "swap_phantom.csv", index=False)
    rows = report(tmp_path).splitlines()
    assert rows[7] == "| phantom | untuned | original | t2 | 0.200 | 0.250 | 0.500 | 0.600 | 50% |"
    assert rows[8] == "| phantom | untuned | tuned | – | – | – | – | – | – |"


@pytest.mark.slow
def test_it_runs_from_phantoms_to_numbers(tmp_path, monkeypatch):
    """At 32 pixels, each stage in this process."""
    tiny.write_dataset(tmp_path / "data" / "Dataset901_PhantomCT")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(style_tiny.SETTINGS))

    def launch(arguments):
        tiny.forget_accelerator()
        return cli.main(["style", *arguments])

    monkeypatch.setattr(swap_ablation, "launch", launch)
    given = ["--data", str(tmp_path / "none"), "--runs", str(tmp_path)]
    given += ["--results", str(tmp_path / "results")]
    assert swap_ablation.main([*given, "--config", str(tmp_path / "tiny.yaml")]) == 0
    found = pd.read_csv(tmp_path / "results" / "swap_phantom.csv")
    assert set(found["variant"]) == set(VARIANTS)
    sets = {v: read_slices(swap_ablation.swapped(tmp_path / "phantom", v)) for v in VARIANTS}
    assert len({str(s.models) for s in sets.values()}) == 4
    first, *others = ([(s.name, s.prompt, s.seed) for s in found.slices] for found in sets.values())
    assert all(first == other for other in others)
