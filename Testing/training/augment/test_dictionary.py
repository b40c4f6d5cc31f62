# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms of MONAI: random convolution and source matching."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose

from srcsm_training.augment.dictionary import RandSemanticConvd, SourceMatchd
from SRCSMSegmenterLib.errors import SRCSMError
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import load_bundle
from SRCSMSegmenterLib.source_matching import match_to_source

SHAPE = (4, 7, 6)


def a_sample(seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = MetaTensor(torch.rand(1, *SHAPE, generator=generator), affine=torch.eye(4) * 2)
    return {"image": image, "label": torch.randint(0, 3, (1, *SHAPE), generator=generator), "id": 3}


def test_a_metatensor_stays_one_and_other_entries_stay():
    sample = a_sample()
    before = sample["image"].clone()
    found = RandSemanticConvd("image", "label").set_random_state(0)(sample)
    assert isinstance(found["image"], MetaTensor)
    assert torch.equal(found["image"].affine, sample["image"].affine)
    assert not torch.allclose(found["image"], before)
    assert torch.equal(sample["image"], before)
    assert found["label"] is sample["label"]
    assert found["id"] == 3


def test_a_numpy_image_stays_one_and_gets_the_same_look():
    sample = a_sample()
    tensor = RandSemanticConvd("image", "label").set_random_state(1)(sample)["image"]
    arrays = {"image": sample["image"].numpy(), "label": sample["label"].numpy()[0]}
    array = RandSemanticConvd("image", "label").set_random_state(1)(arrays)["image"]
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, tensor.numpy())


def test_the_random_state_of_compose_reproduces_and_moves_on():
    def two(seed):
        transform = Compose([RandSemanticConvd("image", "label")]).set_random_state(seed)
        return [transform(a_sample())["image"].numpy() for _ in range(2)]

    first, second = two(5)
    np.testing.assert_array_equal(two(5), [first, second])
    assert not np.allclose(first, second)
    assert not np.allclose(two(6)[0], first)


def test_prob_leaves_samples_as_they_are():
    transform = RandSemanticConvd("image", "label", prob=0.5).set_random_state(0)
    sample = a_sample()
    kept = sum(transform(sample)["image"] is sample["image"] for _ in range(40))
    assert 8 < kept < 32


def test_workers_of_a_loader_draw_differently():
    data = Dataset([a_sample()] * 2, RandSemanticConvd("image", "label"))
    one, other = DataLoader(data, batch_size=1, num_workers=2)
    assert not torch.allclose(one["image"], other["image"])


def test_a_missing_key_is_an_error_unless_allowed():
    with pytest.raises(KeyError, match="other"):
        RandSemanticConvd(["image", "other"], "label")(a_sample())
    RandSemanticConvd(["image", "other"], "label", allow_missing_keys=True)(a_sample())


def test_source_matching_gives_the_integers_of_inference():
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(rng.gamma(2, 90, (1, *SHAPE)).astype(np.float32))
    bundle = load_bundle("abdomen-ct")
    rule = IntensityRule("MR", bundle.description.rule.window)
    expected = match_to_source(raw.numpy(), rule, bundle.histogram)
    for image in (raw, MetaTensor(raw), raw.numpy()):
        for model in ("abdomen-ct", bundle):
            found = SourceMatchd("image", model, "MR")({"image": image})["image"]
            assert type(found) is type(image)
            np.testing.assert_array_equal(np.asarray(found).squeeze(), expected[0])


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 3, 3), (1, 1, 3, 3, 3), (3, 3)])
def test_channels_and_batches_are_not_matched_by_one_histogram(shape):
    with pytest.raises(ValueError, match=r"\(1, \*spatial\), not of shape"):
        SourceMatchd("image", "abdomen-ct", "MR")({"image": np.zeros(shape)})


@pytest.mark.parametrize("transform", [RandSemanticConvd, SourceMatchd])
def test_what_was_not_loaded_is_refused(transform):
    second = "label" if transform is RandSemanticConvd else "abdomen-ct"
    with pytest.raises(ValueError, match="not str; load it first"):
        transform("image", second)({"image": "scan.nii.gz", "label": np.zeros((1, 3, 3))})


def test_other_settings_and_modalities_are_refused_before_any_image():
    with pytest.raises(ValueError, match="not str"):
        RandSemanticConvd("image", "label", "smoothed")
    with pytest.raises(SRCSMError, match="PET"):
        SourceMatchd("image", "abdomen-ct", "PET")


def test_an_unknown_model_is_refused():
    with pytest.raises(SRCSMError, match="abdomen-xx"):
        SourceMatchd("image", "abdomen-xx")
