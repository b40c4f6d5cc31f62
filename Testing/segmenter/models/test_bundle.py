# SPDX-License-Identifier: Apache-2.0
"""The model bundle: what is saved is what is loaded, and nothing else is."""

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save

from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models import bundle as bundles
from SRCSMSegmenterLib.models.bundle import (
    Description,
    ModelBundle,
    load_bundle,
    save_bundle,
    verify_bundle,
)
from SRCSMSegmenterLib.models.catalogue import find_bundles, find_model, shipped_models_folder
from SRCSMSegmenterLib.network import NetworkConfig, UNet
from SRCSMSegmenterLib.organ_positions import Offset
from SRCSMSegmenterLib.source_matching import SourceHistogram
from SRCSMSegmenterLib.terminology import segment_for


@pytest.fixture(scope="module")
def a_bundle():
    network = NetworkConfig(classes=3, channels=(2, 3), stem=(2, 1, 1), norm="instance")
    torch.manual_seed(0)
    return ModelBundle(
        Description(
            name="abdomen-mr",
            task="Liver and right kidney",
            labels=(segment_for("liver", 1), segment_for("right kidney", 2)),
            rule=IntensityRule("MR", quantiles=(0.02, 0.97), maximum_percentile=99.9),
            grid=GridSpec((8, 6, 4), (1.5, 2.0, 2.5), axes="slices"),
            smoothing=0.7,
            expects="Abdominal MR",
            licence="CC BY-SA 4.0",
            training={"steps": 12, "dice": [0.5, 0.25]},
        ),
        network,
        SourceHistogram(np.array([3, 5, 9]), np.array([10, 1, 4]), 0),
        UNet(network).state_dict(),
        (Offset(1, 2, (4.5, -46.0, -76.25), ((300.0, 1, 2), (1, 310.0, 3), (2, 3, 320.0))),),
    )


@pytest.fixture
def folder(tmp_path, a_bundle):
    """A bundle to which somebody added a licence."""
    save_bundle(tmp_path / "abdomen-mr", a_bundle, "# Card\n")
    (tmp_path / "abdomen-mr" / "LICENSE").write_text("The licence\n")
    reseal(tmp_path / "abdomen-mr")
    return tmp_path / "abdomen-mr"


def change(folder, path, edit):
    """Edit a JSON file and list it in SHA256SUMS anew, as somebody who knows the format would."""
    content = json.loads((folder / path).read_text("utf-8"))
    changed = edit(content)
    (folder / path).write_text(json.dumps(content if changed is None else changed))
    reseal(folder)


def reseal(folder):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text(
        "".join(
            f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n"
            for p in files
        )
    )


def test_what_is_loaded_is_what_was_saved(folder, a_bundle):
    loaded = load_bundle(folder)
    assert loaded.description == a_bundle.description
    assert loaded.network == a_bundle.network
    assert loaded.histogram.to_dict() == a_bundle.histogram.to_dict()
    assert loaded.offsets == a_bundle.offsets
    assert loaded.weights.keys() == a_bundle.weights.keys()
    for name, value in loaded.weights.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, a_bundle.weights[name].half().float())


def test_a_network_without_offsets_has_none(tmp_path, a_bundle):
    save_bundle(tmp_path / "model", replace(a_bundle, offsets=()), "# Card\n")
    assert load_bundle(tmp_path / "model").offsets == ()
    assert verify_bundle(tmp_path / "model") == []


def test_offsets_that_are_none_are_refused(folder):
    def spoil(offsets):
        offsets[0]["covariance"][2][2] = -1.0

    change(folder, "configs/organ_offsets.json", spoil)
    with pytest.raises(BundleError, match="from label 1 to 2 needs"):
        load_bundle(folder)


def test_a_network_from_before_its_later_settings_is_the_same_network(folder, a_bundle):
    def without(network):
        assert network.pop("pool_by") == "average"
        assert network.pop("decoder") == []

    change(folder, "configs/network.json", without)
    assert load_bundle(folder).network == a_bundle.network


def test_the_network_computes_with_the_saved_weights(folder, a_bundle):
    original = UNet(a_bundle.network).eval()
    original.load_state_dict({n: v.half().float() for n, v in a_bundle.weights.items()})
    window = torch.randn(1, 1, 4, 6, 8)
    state = torch.get_rng_state()
    network = load_bundle(folder).unet()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(network(window), original(window))
    assert not network.training


def test_sha256sum_itself_finds_the_folder_whole(folder):
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, check=True)


def test_identity_is_the_hash_of_the_list_and_tells_two_networks_apart(tmp_path, folder, a_bundle):
    sums = (folder / "SHA256SUMS").read_bytes()
    assert load_bundle(folder).identity == hashlib.sha256(sums).hexdigest()
    weights = {name: value + 0.5 for name, value in a_bundle.weights.items()}
    other = save_bundle(tmp_path / "b", replace(a_bundle, weights=weights), "# Card\n")
    assert load_bundle(tmp_path / "b").identity == other != load_bundle(folder).identity


def test_metadata_has_the_keys_monai_requires(folder):
    metadata = json.loads((folder / "configs/metadata.json").read_text("utf-8"))
    assert metadata.keys() >= {
        "version",
        "changelog",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
    }
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "liver",
        "2": "right kidney",
    }
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [4, 6, 8]


def test_metadata_of_shipped_models_have_the_types_that_monais_schema_wants():
    """What meta_schema_20240725.json, which they name, wants of the fields that are there."""
    texts = {"version", "monai_version", "pytorch_version", "numpy_version", "task", "description"}
    texts |= {"schema", "authors", "copyright", "intended_use"}
    of_tensors = {"type": str, "format": str, "num_channels": int, "spatial_shape": list}
    of_tensors |= {"dtype": str, "value_range": list, "is_patch_data": bool, "channel_def": dict}
    for folder in find_bundles(shipped_models_folder()):
        content = json.loads((folder / "configs" / "metadata.json").read_bytes())
        assert {key for key in content if isinstance(content[key], str)} == texts
        assert all(isinstance(content[key], dict) for key in content.keys() - texts)
        assert {key for key in content if key.endswith("_data_format")} == {"network_data_format"}
        for tensors in content["network_data_format"].values():
            for tensor in tensors.values():
                for key, kind in of_tensors.items():
                    assert type(tensor[key]) is kind
                assert {type(size) for size in tensor["spatial_shape"]} == {int}
                assert {type(limit) for limit in tensor["value_range"]} <= {int, float}


def test_a_whole_folder_has_no_faults(folder):
    assert verify_bundle(folder) == []


@pytest.mark.parametrize("path", [*bundles.REQUIRED, "LICENSE", "SHA256SUMS"])
def test_a_missing_file_is_found_and_refused(folder, path):
    (folder / path).unlink()
    assert path in " ".join(verify_bundle(folder))
    with pytest.raises(BundleError, match=path):
        load_bundle(folder)


@pytest.mark.parametrize("path", [*bundles.REQUIRED, "LICENSE"])
def test_one_changed_bit_is_found_and_refused(folder, path):
    content = bytearray((folder / path).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / path).write_bytes(content)
    assert verify_bundle(folder) == [f"{path} is altered"]
    with pytest.raises(BundleError, match=f"{path} is altered"):
        load_bundle(folder)


@pytest.mark.parametrize("path", ["models/model.pt", "setup.py", "docs/deep/er/.hidden"])
def test_an_extra_file_is_found_and_refused(folder, path):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text("")
    assert verify_bundle(folder) == [f"{path} is not listed in SHA256SUMS"]
    with pytest.raises(BundleError, match="not listed"):
        load_bundle(folder)


def test_a_link_is_refused_even_to_the_same_content(folder, tmp_path):
    shutil.move(folder / "LICENSE", tmp_path / "elsewhere")
    (folder / "LICENSE").symlink_to(tmp_path / "elsewhere")
    assert verify_bundle(folder) == ["LICENSE is a link"]


def test_all_faults_are_listed_at_once(folder):
    (folder / "docs/README.md").unlink()
    (folder / "LICENSE").write_text("Another licence")
    (folder / "extra").write_text("")
    assert len(verify_bundle(folder)) == 3


def test_a_list_that_points_outside_the_folder_is_refused(folder):
    with open(folder / "SHA256SUMS", "a") as sums:
        sums.write(f"{hashlib.sha256(b'').hexdigest()}  ../../etc/passwd\n")
    assert verify_bundle(folder) == ["../../etc/passwd is missing"]


@pytest.mark.parametrize("content", [b"nonsense\n", b"\xff\xfe", b"00  LICENSE\n"])
def test_an_unreadable_list_is_a_fault(folder, content):
    (folder / "SHA256SUMS").write_bytes(content)
    assert "SHA256SUMS cannot be read" in verify_bundle(folder)[0]


def test_no_folder_at_all_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(BundleError, match="is neither a model folder nor the name of a shipped"):
        load_bundle(tmp_path / "absent")


@pytest.mark.parametrize(
    ("version", "remedy"), [(2, "update"), (0, "export"), ("1", "export"), (None, "export")]
)
def test_another_format_version_is_named(folder, version, remedy):
    change(folder, "configs/metadata.json", lambda m: m["srcsm"].update(format_version=version))
    with pytest.raises(BundleError, match=remedy):
        load_bundle(folder)


def put(*keys):
    """An edit that sets the value at the path `keys[:-1]` to `keys[-1]`."""

    def edit(content):
        for key in keys[:-2]:
            content = content[key]
        content[keys[-2]] = keys[-1]

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("srcsm"),
        lambda m: m["srcsm"].pop("smoothing"),
        lambda m: [],
        put("srcsm", []),
        put("srcsm", "surprise", 1),
        put("srcsm", "name", 5),
        put("srcsm", "smoothing", "0.7"),
        put("srcsm", "smoothing", True),
        put("srcsm", "smoothing", -1),
        put("srcsm", "smoothing", float("nan")),
        put("srcsm", "training", [1]),
        put("srcsm", "labels", {}),
        put("srcsm", "labels", []),
        put("srcsm", "labels", 0, "value", 2),
        put("srcsm", "labels", 0, "value", 1.0),
        put("srcsm", "labels", 0, {"value": 1}),
        put("srcsm", "labels", 0, "color", [1, 2]),
        put("srcsm", "labels", 0, "terminology", "type", None),
        put("srcsm", "labels", 1, "terminology", "modifier", "Right"),
        put("srcsm", "grid", "size", [8, 6]),
        put("srcsm", "grid", "size", [8, 6, 4.0]),
        put("srcsm", "grid", "size", [9, 6, 4]),
        put("srcsm", "grid", "size", [8, 6, 0]),
        put("srcsm", "grid", "spacing", [1.5, -2.0, 2.5]),
        put("srcsm", "grid", "axes", "diagonal"),
        put("srcsm", "rule", "modality", "PET"),
        put("srcsm", "rule", "window", [5, 5]),
        put("srcsm", "rule", "quantiles", [0.9, 0.1]),
        put("srcsm", "rule", "quantiles", [0.5, 1.5]),
        put("srcsm", "rule", "maximum_percentile", 0),
        put("srcsm", "smoothing", 1e9),
        put("srcsm", "grid", "spacing", [1e-6, 2.0, 2.5]),
        put("srcsm", "grid", "size", [16384, 16384, 16384]),
        put("srcsm", "name", "two\nlines"),
        put("srcsm", "task", "\x1b[2J"),
        put("srcsm", "labels", 0, "name", "liver\n\nx"),
        put("srcsm", "labels", 0, "name", "\ud800"),
        put("srcsm", "labels", 0, "name", ""),
        put("srcsm", "labels", 0, "name", "right kidney"),
        put("srcsm", "labels", 0, "color", [1, 2, 256]),
        put("srcsm", "labels", 0, "terminology", "type", "meaning", "Liver|Name:=x"),
    ],
)
def test_odd_metadata_is_refused(folder, edit):
    change(folder, "configs/metadata.json", edit)
    assert verify_bundle(folder) == []
    with pytest.raises(BundleError, match="cannot be used"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        ("configs/network.json", put("classes", 4)),
        ("configs/network.json", put("channels", [2, 4])),
        ("configs/network.json", put("channels", 2)),
        ("configs/network.json", put("stem", [0, 1, 1])),
        ("configs/network.json", put("dropout", 2.0)),
        ("configs/network.json", put("channels", [2**63 - 1, 3])),
        ("configs/network.json", put("channels", [2] * 1000)),
        ("configs/network.json", put("kernel", [10001, 3, 3])),
        ("configs/network.json", put("stem", [2**70, 1, 1])),
        ("configs/source_histogram.json", put("values", "abc")),
        ("configs/source_histogram.json", put("values", [[1], [2, 3]])),
        ("configs/source_histogram.json", put("values", [1, 2, 2**70])),
        ("configs/source_histogram.json", put("minimum", None)),
        ("configs/network.json", lambda n: n.pop("norm") and None),
        ("configs/source_histogram.json", put("counts", [1, 2])),
        ("configs/source_histogram.json", lambda h: [1]),
    ],
)
def test_parts_that_do_not_fit_are_refused(folder, path, edit):
    change(folder, path, edit)
    with pytest.raises(BundleError, match="cannot be used"):
        load_bundle(folder)


@pytest.mark.parametrize("path", bundles.REQUIRED[:4])
def test_a_file_that_is_something_else_is_refused(folder, path):
    (folder / path).write_bytes(b"\x80\x04 pickle?")
    reseal(folder)
    with pytest.raises(BundleError, match="cannot be used"):
        load_bundle(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(folder, a_bundle, value):
    name = next(iter(a_bundle.weights))
    weights = {n: w.half().contiguous() for n, w in a_bundle.weights.items()}
    weights[name].view(-1)[0] = value
    (folder / bundles.WEIGHTS).write_bytes(save(weights))
    reseal(folder)
    with pytest.raises(BundleError, match=f"1 of .*{name}, are not finite"):
        load_bundle(folder)
    large = a_bundle.weights | {name: a_bundle.weights[name] + 1e6}
    with pytest.raises(BundleError, match="too large for float16"):
        save_bundle(folder, replace(a_bundle, weights=large), "# Card\n")


def test_saving_again_replaces_the_bundle_and_leaves_nothing_behind(folder, a_bundle):
    before = load_bundle(folder).identity
    save_bundle(folder, a_bundle, "# Another card\n")
    assert verify_bundle(folder) == []
    assert load_bundle(folder).identity != before
    assert not (folder / "LICENSE").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["abdomen-mr"]


def test_a_folder_with_other_things_is_not_replaced(tmp_path, a_bundle):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="no model folder"):
        save_bundle(tmp_path / "mine", a_bundle, "")
    assert (tmp_path / "mine" / "thesis.txt").read_text("utf-8") == "years of work"


def test_a_full_disk_leaves_the_older_bundle_as_it_was(folder, a_bundle, monkeypatch):
    before = load_bundle(folder).identity
    replace_file, calls = os.replace, []

    def full(source, target):
        if ".part-" in str(source):
            calls.append(source)
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BundleError, match="No space left"):
        save_bundle(folder, a_bundle, "# Another card\n")
    assert calls
    assert load_bundle(folder).identity == before
    assert [p.name for p in folder.parent.iterdir()] == ["abdomen-mr"]


def test_a_bundle_whose_replacement_was_cut_off_is_put_back(folder, a_bundle):
    before = load_bundle(folder).identity
    for read in (lambda: find_bundles(folder.parent), lambda: verify_bundle(folder)):
        os.replace(folder, folder.with_name(f".{folder.name}.old"))
        read()
        assert load_bundle(folder).identity == before


def test_bundles_are_found_in_a_folder_and_as_one(folder, tmp_path):
    (tmp_path / "not-one").mkdir()
    shutil.copytree(folder, tmp_path / ".abdomen-mr.123.tmp")
    assert find_bundles(tmp_path) == [folder]
    assert find_bundles(folder, tmp_path / "absent") == [folder]


def test_only_a_bare_name_is_looked_up_among_the_shipped_models(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SRCSM_MODELS", str(folder.parent))
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deeper")
    assert find_model("abdomen-mr") == folder
    assert find_model(str(folder)) == folder
    # From the shipped models' folder the last path leads to one, from here to none.
    for typo in ("runs/typo/abdomen-mr", "./abdomen-mr", f"../{folder.parent.name}/abdomen-mr"):
        with pytest.raises(BundleError, match="neither a model folder nor the name"):
            find_model(typo)


def test_the_models_folder_is_the_repositorys_or_the_one_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SRCSM_MODELS", raising=False)
    assert shipped_models_folder().parts[-2:] == ("Resources", "Models")
    assert (shipped_models_folder().parents[1] / "pyproject.toml").is_file()
    monkeypatch.setenv("SRCSM_MODELS", str(tmp_path))
    assert shipped_models_folder() == tmp_path
