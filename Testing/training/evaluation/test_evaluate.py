# SPDX-License-Identifier: Apache-2.0
"""From segmentations to tables, tests and pictures, with segmenters whose faults are known."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from srcsm_training.data.dataset import Case, Dataset
from srcsm_training.evaluation.evaluate import (
    EvaluationError,
    across_seeds,
    compare_methods,
    cross_domain_table,
    draw_slice,
    evaluate,
    map_labels,
    markdown_table,
    most_wrong_slice,
    paired_test,
    parse_label_map,
    read_scores,
    summarise,
    worst_cases,
    write_comparison,
    write_report,
)
from srcsm_training.evaluation.metrics import Score
from SRCSMSegmenterLib.errors import ConfigError, DatasetError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import write_volume

LABELS = {"liver": 1, "spleen": 2}


def table_of(rows, dataset="MR", setting="off", seconds=1.0):
    """A long table from (case, label, status, dice, assd) rows."""
    scores = [
        Score(case, label, status, dice=dice, assd=assd, hd95=2 * assd)
        for case, label, status, dice, assd in rows
    ]
    run = {"dataset": dataset, "source_matching": setting, "seconds": seconds}
    return pd.DataFrame([run | vars(score) for score in scores])


def dice_table(values, dataset="MR", setting="off"):
    """One label, one case a value."""
    rows = [(f"case{n}", "liver", "scored", value, 1.0) for n, value in enumerate(values)]
    return table_of(rows, dataset, setting)


@pytest.fixture
def scores():
    """Three cases: c misses the spleen, a has none and b's is scored."""
    return table_of(
        [
            ("a", "liver", "scored", 0.9, 1.0),
            ("a", "spleen", "absent", np.nan, np.nan),
            ("b", "liver", "scored", 0.8, 2.0),
            ("b", "spleen", "scored", 0.6, 4.0),
            ("c", "liver", "scored", 0.4, 6.0),
            ("c", "spleen", "missed", 0.0, np.nan),
        ]
    )


def row_of(table, **where):
    [row] = table[np.logical_and.reduce([table[k] == v for k, v in where.items()])].to_dict(
        "records"
    )
    return row


def test_label_statistics_leave_out_absent_and_count_missed_as_zero(scores):
    spleen = row_of(summarise(scores), label="spleen")
    assert [spleen[s] for s in ("scored", "missed", "false positive", "absent")] == [1, 1, 0, 1]
    assert spleen["dice_mean"] == pytest.approx(0.3)
    assert spleen["dice_median"] == pytest.approx(0.3)
    assert spleen["dice_sd"] == pytest.approx(np.sqrt(0.18))
    assert (spleen["dice_min"], spleen["dice_max"]) == (0, 0.6)
    assert (spleen["assd_mean"], spleen["hd95_mean"]) == (4, 8)
    assert np.isnan(spleen["assd_sd"])
    liver = row_of(summarise(scores), label="liver")
    assert liver["dice_median"] == 0.8
    assert liver["assd_mean"] == pytest.approx(3)


def test_the_mean_row_is_over_the_cases_means(scores):
    mean = row_of(summarise(scores), label="mean")
    assert mean["dice_mean"] == pytest.approx((0.9 + 0.7 + 0.2) / 3)
    assert mean["dice_sd"] == pytest.approx(np.std([0.9, 0.7, 0.2], ddof=1))
    assert mean["assd_mean"] == pytest.approx((1 + 3 + 6) / 3)
    assert [mean[s] for s in ("scored", "missed", "false positive", "absent")] == [4, 1, 0, 1]


def test_worst_cases_are_taken_per_dataset_and_setting(scores):
    both = pd.concat([scores, dice_table([0.5, 0.3], "CT", "on")])
    assert worst_cases(both, 1) == {
        ("CT", "on", "case1"): 0.3,
        ("MR", "off", "c"): pytest.approx(0.2),
    }
    assert len(worst_cases(both, 2)) == 4


def test_seeds_give_mean_and_sample_sd():
    result = across_seeds([dice_table([0.5, 0.7]), dice_table([0.7, 0.9]), dice_table([0.9, 1.0])])
    liver = row_of(result, label="liver")
    assert liver["seeds"] == 3
    assert liver["dice_mean"] == pytest.approx((0.6 + 0.8 + 0.95) / 3)
    assert liver["dice_sd"] == pytest.approx(np.std([0.6, 0.8, 0.95], ddof=1))


def test_the_cross_domain_table_has_methods_down_and_targets_across():
    def run(*values):
        on, off = dice_table(values[:2], setting="on"), dice_table(values[2:4], setting="off")
        return pd.concat([off, on, dice_table(values[4:], "ACDC", "off")])

    methods = {
        "plain": [run(0.3, 0.5, 0.1, 0.3, 0.25, 0.25)],
        "SRC": [run(0.8, 0.8, 0.7, 0.7, 0.5, 0.5), run(0.9, 0.9, 0.7, 0.7, 0.6, 0.6)],
    }
    table = cross_domain_table(methods)
    assert table.index.tolist() == [
        ("plain", "off"),
        ("plain", "on"),
        ("SRC", "off"),
        ("SRC", "on"),
    ]
    assert table["MR"].tolist() == ["0.200", "0.400", "0.700 ± 0.000", "0.850 ± 0.071"]
    assert table["ACDC"].tolist() == ["0.250", "-", "0.550 ± 0.071", "-"]
    assert cross_domain_table(methods, "hd95", "liver").loc[("plain", "on"), "MR"] == "2.00"


# Differences on minus off: +1, -2, +3, +4, -5, +6, +7 and +8 hundredths.
OFF = [0.50, 0.60, 0.55, 0.40, 0.70, 0.45, 0.52, 0.48]
ON = [0.51, 0.58, 0.58, 0.44, 0.65, 0.51, 0.59, 0.56]


def test_the_paired_test_equals_scipy_and_a_count_by_hand():
    result = paired_test(
        dice_table(OFF), dice_table(ON[::-1]).assign(case=lambda t: t.case[::-1].values)
    )
    # Negative ranks 2 and 5 sum to 7; of the 2^8 signs, 19 subsets of 1..8 sum to 7 or less.
    assert result.p_value == pytest.approx(2 * 19 / 256)
    assert result.p_value == wilcoxon(OFF, ON).pvalue
    assert result.cases == 8
    assert result.difference == pytest.approx(0.22 / 8)
    assert result.second - result.first == pytest.approx(result.difference)


def test_the_paired_test_takes_means_over_labels_and_seeds():
    first = pd.concat([dice_table([0.2, 0.4, 0.6]), dice_table([0.4, 0.6, 0.8])])
    second = dice_table([0.4, 0.7, 1.0])
    result = paired_test(first, second)
    assert (result.cases, result.first, result.second) == (
        3,
        pytest.approx(0.5),
        pytest.approx(0.7),
    )
    assert result.p_value == 0.25


def test_equal_results_have_p_one_and_nan_pairs_are_left_out(scores):
    same = paired_test(scores, scores, "assd")
    assert (same.cases, same.p_value) == (3, 1.0)
    missed = scores.assign(assd=scores["assd"].where(scores["case"] != "c"))
    assert paired_test(scores, missed, "assd").cases == 2


def test_the_paired_test_refuses_what_is_no_pair():
    with pytest.raises(EvaluationError, match="alone: MR/case2"):
        paired_test(dice_table([0.1, 0.2, 0.3]), dice_table([0.1, 0.2]))
    both = pd.concat([dice_table([0.1]), dice_table([0.1], setting="on")])
    with pytest.raises(EvaluationError, match="one SM setting"):
        paired_test(both, both)


def test_methods_are_held_against_the_first(tmp_path):
    methods = {
        "plain": [dice_table(OFF)],
        "SRC": [dice_table(ON), dice_table(ON, setting="on")],
        "hard": [dice_table(OFF)],
    }
    tests = compare_methods(methods)
    assert tests[["method", "against", "source_matching"]].values.tolist() == [
        ["SRC", "plain", "off"],
        ["hard", "plain", "off"],
    ]
    assert tests["p_value"].tolist() == [pytest.approx(38 / 256), 1.0]
    write_comparison(methods, tmp_path / "new")
    content = json.loads((tmp_path / "new" / "comparison.json").read_text("utf-8"))
    assert content["tests"][0]["difference"] == pytest.approx(0.22 / 8)
    assert {row["method"] for row in content["means"]} == set(methods)
    text = (tmp_path / "new" / "comparison.md").read_text("utf-8")
    assert "| ASSD (mm) | SRC | on | 1.00 |" in text


def test_label_maps_are_read_and_applied():
    label_map = parse_label_map("1:1,5:2, 2:3")
    assert label_map == {1: 1, 5: 2, 2: 3}
    array = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    mapped = map_labels(array, label_map)
    assert mapped.tolist() == [[0, 1, 3], [0, 0, 2]]
    assert mapped.dtype == np.uint8
    assert map_labels(np.array([9, 1]), {1: 4, 2: 4}).tolist() == [0, 4]


@pytest.mark.parametrize("text", ["", "1", "1:a", "1:2:3", "1:1,1:2", "-1:1", "1:-1"])
def test_label_maps_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match="abel map"):
        parse_label_map(text)


def test_reports_are_complete_and_read_back_the_same(scores, tmp_path):
    on = scores.assign(source_matching="on", case=["001", "001", "02", "02", "NA", "NA"])
    off = on.assign(source_matching="off", dice=on["dice"] / 2)
    table = pd.concat([off, on], ignore_index=True)
    write_report(table, tmp_path / "run", {"network": "abdomen", "seed": 3})
    pd.testing.assert_frame_equal(read_scores(tmp_path / "run" / "cases.csv"), table)

    content = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert content["settings"] == {"network": "abdomen", "seed": 3}
    assert len(content["cases"]) == 12
    assert content["cases"][1]["status"] == "absent"
    assert content["cases"][1]["dice"] is None
    assert [row["label"] for row in content["labels"]] == ["liver", "spleen"] * 2
    assert content["labels"][3]["missed"] == 1
    assert [row["dice_mean"] for row in content["means"]] == [
        pytest.approx(0.3),
        pytest.approx(0.6),
    ]
    [test] = content["source_matching_test"]
    assert (test["dataset"], test["cases"], test["p_value"]) == ("MR", 3, 0.25)

    text = (tmp_path / "run" / "summary.md").read_text("utf-8")
    assert "- seed: 3" in text
    assert "| Dice | this network | on | 0.600 |" in text
    assert "| spleen | on | 0.300 ± 0.424 | 4.00 | 8.00 | 0.300 | 1 | 1 | 0 | 1 |" in text
    assert "| MR | 3 | 0.3 | 0.6 | 0.3 | 0.25 |" in text
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "cases.csv",
        "metrics.json",
        "summary.md",
    ]


def test_scores_that_are_none_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="Cannot read"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("dataset,case\nMR,a\n")
    with pytest.raises(EvaluationError, match="it lacks"):
        read_scores(tmp_path / "other.csv")


def test_an_output_that_cannot_be_written_is_one_sentence(scores, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"Cannot write .*cases\.csv"):
        write_report(scores, tmp_path / "file", {})


def test_a_failed_write_keeps_the_older_file_and_leaves_nothing_else(scores, tmp_path, monkeypatch):
    write_report(scores, tmp_path, {})
    before = (tmp_path / "metrics.json").read_text("utf-8")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(EvaluationError, match="No space left on device"):
        write_report(scores.assign(dice=0.1), tmp_path, {})
    assert (tmp_path / "metrics.json").read_text("utf-8") == before
    assert len(list(tmp_path.iterdir())) == 3


def test_markdown_tables_have_a_head_and_a_rule():
    assert markdown_table(pd.DataFrame({"a": [1, 2], "b c": ["x", "y"]})) == (
        "| a | b c |\n| --- | --- |\n| 1 | x |\n| 2 | y |"
    )


# --- evaluate

SHAPE = (3, 6, 8)
AFFINE = np.diag([-1.0, -1.5, 4.0, 1.0])


def truth_array():
    array = np.zeros(SHAPE, np.uint8)
    array[1, 1:4, 2:6] = 1
    array[2, 3:5, 1:4] = 2
    return array


@pytest.fixture
def dataset(tmp_path):
    """Two cases that share one truth; the first voxel of the image tells them apart."""
    cases = []
    for number, name in enumerate(["p", "q"]):
        image = np.full(SHAPE, 100 + number, np.int16)
        case = Case(name, tmp_path / f"{name}_image.nii.gz", tmp_path / f"{name}_labels.nii.gz")
        write_volume(case.image, Volume(image, Geometry(SHAPE[::-1], AFFINE)))
        write_volume(case.labels, Volume(truth_array(), Geometry(SHAPE[::-1], AFFINE)))
        cases.append(case)
    return Dataset(tmp_path, "Heart", "MR", LABELS, tuple(cases))


def segment(image, source_matching):
    """Perfect with SM; without, liver is halved and, in q, the spleen is lost."""
    labels = truth_array()
    if not source_matching:
        labels[1, 1:4, 4:6] = 0
        if image.array[0, 0, 0] == 101:
            labels[labels == 2] = 0
    return Volume(labels, image.geometry)


def test_evaluate_scores_every_case_with_and_without_source_matching(dataset, tmp_path):
    calls = []
    output = tmp_path / "results"
    table = evaluate(segment, [dataset], output, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4, "p"), (2, 4, "p"), (3, 4, "q"), (4, 4, "q")]
    assert table.groupby("source_matching")["dice"].mean().to_dict() == {
        "off": pytest.approx((2 / 3 + 1 + 2 / 3 + 0) / 4),
        "on": 1,
    }
    missed = table[table["status"] == "missed"]
    assert missed[["case", "label", "source_matching"]].values.tolist() == [["q", "spleen", "off"]]
    assert (table["seconds"] > 0).all()
    pd.testing.assert_frame_equal(read_scores(output / "cases.csv"), table)
    assert {path.name for path in output.iterdir()} == {
        "cases.csv",
        "metrics.json",
        "summary.md",
        "pictures",
    }


def test_evaluate_uses_the_spacing_of_the_scan(dataset, tmp_path):
    def one_slice_off(image, source_matching):
        return Volume(np.roll(truth_array(), -1, axis=0), image.geometry)

    table = evaluate(one_slice_off, [dataset], tmp_path / "out", ("off",), worst=0)
    assert table["distance_max"].tolist() == [4.0] * 4  # slices of 4 mm


def test_pictures_show_only_the_worst_cases(dataset, tmp_path):
    evaluate(segment, [dataset], tmp_path / "out", ("off",), worst=1)
    [picture] = (tmp_path / "out" / "pictures").iterdir()
    assert picture.name == "Heart_q_sm_off.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_label_map_renames_the_prediction_and_limits_what_is_scored(dataset, tmp_path):
    def whole_heart(image, source_matching):
        return Volume(np.where(truth_array() == 2, 7, 3).astype(np.uint8), image.geometry)

    table = evaluate(whole_heart, [dataset], tmp_path / "out", ("on",), label_map={7: 2})
    assert table[["label", "dice"]].values.tolist() == [["spleen", 1.0]] * 2
    with pytest.raises(DatasetError, match=r"no label \[5\]"):
        evaluate(whole_heart, [dataset], tmp_path / "out", label_map={7: 5})


def test_settings_travel_into_the_report(dataset, tmp_path):
    evaluate(segment, [dataset], tmp_path, ("on",), worst=0, settings={"bundle": "models/a"})
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["settings"] == {
        "bundle": "models/a"
    }
    assert "- bundle: models/a" in (tmp_path / "summary.md").read_text("utf-8")


def test_a_run_that_stops_keeps_its_scores_and_those_of_the_last_run(dataset, tmp_path):
    output = tmp_path / "out"
    before = evaluate(segment, [dataset], output, worst=0)

    def fails_on_the_second(image, source_matching):
        if image.array[0, 0, 0] == 101:
            raise VolumeError("no")
        return segment(image, source_matching)

    with pytest.raises(VolumeError):
        evaluate(fails_on_the_second, [dataset], output, worst=0)
    pd.testing.assert_frame_equal(read_scores(output / "cases.csv"), before)
    assert read_scores(output / "cases.partial.csv")["case"].unique().tolist() == ["p"]


def test_cases_without_labels_and_folders_without_leave_fail_before_any_work(dataset, tmp_path):
    def never(image, source_matching):
        raise AssertionError("segmented")

    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="Cannot write"):
        evaluate(never, [dataset], tmp_path / "file")
    bare = Dataset(tmp_path, "Heart", "MR", LABELS, (Case("p", dataset.cases[0].image, None),))
    with pytest.raises(DatasetError, match="no label map for p"):
        evaluate(never, [bare], tmp_path / "out")


# --- pictures


@pytest.mark.parametrize(
    ("axes", "through"),
    [
        # Columns: the directions (RAS) of I, J, K, in mm a voxel.
        (np.diag([-1.0, -2.0, 5.0]), 2),  # I to the left, J to posterior: shown as stored
        (np.diag([1.0, 2.0, 5.0]), 2),  # both turned round
        (np.array([[0, 5.0, 0], [0, 0, 2.0], [1.0, 0, 0]]), 1),  # I superior, J right, K anterior
        (np.array([[0, 0, -1.0], [5.0, 0, 0], [0, -2.0, 0]]), 0),
    ],
)
def test_slices_are_shown_with_right_on_the_left_and_anterior_or_superior_on_top(axes, through):
    affine = np.eye(4)
    affine[:3, :3] = axes
    geometry = Geometry((4, 5, 6), affine)
    ijk = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), axis=-1)
    ras = geometry.to_ras(ijk).transpose(2, 1, 0, 3)  # of every voxel, (K, J, I, 3)
    truth = np.zeros(geometry.shape, np.uint8)
    wrong = [slice(None)] * 3
    wrong[2 - through] = 3
    truth[tuple(wrong)] = 1
    views = [
        most_wrong_slice(Volume(ras[..., n], geometry), np.zeros_like(truth), truth, {"organ": 1})
        for n in range(3)
    ]
    assert all(view.index == 3 for view in views)
    assert all(view.truth.all() and not view.prediction.any() for view in views)
    steps = [(np.diff(view.image, axis=0), np.diff(view.image, axis=1)) for view in views]
    normal = int(np.argmax(np.abs(geometry.direction[:, through])))
    row, column = {0: (2, 1), 1: (2, 0), 2: (1, 0)}[normal]
    if normal == 0:  # a sagittal slice has no right and left; either way round will do
        assert not any(step.any() for step in steps[0])
        return
    assert (steps[row][0] < 0).all()
    assert (steps[column][1] < 0).all()
    spacing = np.abs(axes).sum(axis=1)  # along R, A, S
    assert views[0].aspect == pytest.approx(spacing[row] / spacing[column])


def test_of_equally_coarse_axes_slices_run_along_k():
    geometry = Geometry((4, 5, 6), np.eye(4))
    truth = np.zeros(geometry.shape, np.uint8)
    truth[2, 1:4, 1:3] = 1
    truth[:, 2, 2] = 9  # not scored, not counted
    view = most_wrong_slice(
        Volume(truth.astype(np.float32), geometry), np.zeros_like(truth), truth, {"organ": 1}
    )
    assert (view.index, view.truth.shape, view.truth.sum()) == (2, (5, 4), 5)


def test_a_picture_is_drawn_where_a_label_is_nowhere_or_everywhere(tmp_path):
    geometry = Geometry((4, 5, 6), np.eye(4))
    everywhere, nowhere = np.ones(geometry.shape, np.uint8), np.zeros(geometry.shape, np.uint8)
    image = Volume(np.zeros(geometry.shape, np.float32), geometry)
    view = most_wrong_slice(image, everywhere, nowhere, LABELS)
    draw_slice(view, "title", tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").stat().st_size > 1000
