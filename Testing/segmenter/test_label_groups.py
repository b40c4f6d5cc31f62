# SPDX-License-Identifier: Apache-2.0
"""Groups of labels: their faults, and the way from dataset.json to the panel's card."""

import json
from dataclasses import replace

import pytest
from threshold_network import a_bundle

from SRCSMSegmenterLib.dataset_file import describe, new_description
from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.label_groups import group_faults, groups_of
from SRCSMSegmenterLib.models.bundle import load_bundle, save_bundle
from SRCSMSegmenterLib.models.catalogue import METADATA, read_card, shipped_models_folder

GROUPS = {"Digestive": ("liver",), "Blood": ("spleen",)}


def grouped(groups):
    """A model with a liver and a spleen."""
    bundle = a_bundle(GridSpec((16, 16, 8), (1.0, 1.0, 1.5)))
    return replace(bundle, description=replace(bundle.description, groups=groups))


@pytest.mark.parametrize(
    ("groups", "fault"),
    [
        ({"Digestive": ["colon"]}, "names 'colon', which is no label"),
        ({"a": ["liver"], "b": ["liver"]}, "'liver' is in a group twice"),
        ({"two\nlines": ["liver"]}, "is no name"),
    ],
)
def test_groups_that_do_not_fit_the_labels_are_faults(groups, fault):
    assert fault in " ".join(group_faults(groups, ["liver", "spleen"]))
    content = new_description("CT", {"liver": 1, "spleen": 2}, 1) | {"groups": groups}
    assert fault in " ".join(describe(content)[1])


def test_a_dataset_names_groups_or_none():
    content = new_description("CT", {"liver": 1, "spleen": 2}, 1)
    assert describe(content)[0].groups == {}
    description, faults = describe(content | {"groups": {"Digestive": ["liver"]}})
    assert (description.groups, faults) == ({"Digestive": ("liver",)}, [])
    (fault,) = describe(content | {"groups": ["liver"]})[1]
    assert fault.startswith("dataset.json: groups")


def test_a_network_of_some_labels_has_their_groups_alone():
    assert groups_of(GROUPS, ["liver"]) == {"Digestive": ("liver",)}


def test_a_model_keeps_its_groups_and_its_card_tells_them(tmp_path):
    save_bundle(tmp_path / "model", grouped({"Digestive": ("liver",)}), "")
    assert load_bundle(tmp_path / "model").description.groups == {"Digestive": ("liver",)}
    groups = {organ.name: organ.group for organ in read_card(tmp_path / "model").organs}
    assert groups == {"liver": "Digestive", "spleen": ""}


def test_a_model_from_before_there_were_groups_has_none(tmp_path):
    save_bundle(tmp_path / "model", grouped({}), "")
    path = tmp_path / "model" / METADATA
    content = json.loads(path.read_bytes())
    assert content["srcsm"].pop("groups") == {}
    path.write_text(json.dumps(content))
    assert {organ.group for organ in read_card(tmp_path / "model").organs} == {""}


def test_a_group_of_no_label_is_refused():
    with pytest.raises(BundleError, match="names 'colon', which is no label"):
        grouped({"Digestive": ("colon",)})


def test_every_organ_of_the_shipped_network_of_thirteen_is_in_a_group():
    card = read_card(shipped_models_folder() / "abdomen-ct")
    assert len(card.organs) == 13
    assert all(organ.group for organ in card.organs)
    large = [organ.name for organ in card.organs if organ.group == "Large organs"]
    assert large == ["liver", "right_kidney", "left_kidney", "spleen"]
