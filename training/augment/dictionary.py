# SPDX-License-Identifier: Apache-2.0
"""SRC and source matching as dictionary transforms of MONAI."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor

from SRCSMSegmenterLib.errors import InputError
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle
from SRCSMSegmenterLib.source_matching import match_to_source

from .semantic import SemanticRandomConvolution


class RandSemanticConvd(MapTransform, RandomizableTransform):
    """Semantic-aware random convolution of images in a dictionary.

    `set_random_state`, of it or of the `Compose` around it, makes it reproducible, in the workers
    of MONAI's `DataLoader` too. It computes on the images' device.

    Args:
        keys: of the images, (C, *spatial), normalised; tensors, MetaTensors or arrays.
        label_key: of the labels, (*spatial), (1, *spatial) or one-hot (classes, *spatial).
        transform: with the settings of the method; None is the paper's.
        prob: chance that a sample is changed.
        allow_missing_keys: skip keys that a dictionary lacks.

    Raises:
        InputError: `transform` is another object.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: Hashable,
        transform: SemanticRandomConvolution | None = None,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key = label_key
        if not isinstance(transform, SemanticRandomConvolution | None):
            raise InputError(
                f"transform is a SemanticRandomConvolution or None, not {type(transform).__name__}."
            )
        self.transform = transform or SemanticRandomConvolution()
        self._seed = 0

    def randomize(self, data: object = None) -> None:
        """Draw whether the sample is changed, and the seed of its networks."""
        super().randomize(data)
        self._seed = int(self.R.randint(2**32, dtype=np.uint64))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with changed images; their types and metadata stay.

        Raises:
            KeyError: the labels, or images that may not be missing, are.
            InputError: see `SemanticRandomConvolution`.
        """
        found = dict(data)
        self.randomize()
        if not self._do_transform:
            return found
        generator = torch.Generator().manual_seed(self._seed)
        labels = _tensor(found, self.label_key)
        for key in self.key_iterator(found):
            images = _tensor(found, key)
            looks = self.transform(images, labels, generator)[0]
            found[key] = convert_to_dst_type(looks, found[key])[0]
        return found


def _tensor(sample: Mapping[Hashable, Any], key: Hashable) -> torch.Tensor:
    """Return an entry of a sample as a batch of one; it lies in the memory of the entry."""
    if not isinstance(sample[key], torch.Tensor | np.ndarray):
        raise InputError(
            f"{key} is a tensor or an array, not {type(sample[key]).__name__}; load it first, such "
            "as by LoadImaged."
        )
    return convert_to_tensor(sample[key], track_meta=False)[None]


class SourceMatchd(MapTransform):
    """Source matching of images in a dictionary: the intensities of a network's source domain.

    It belongs before smoothing, cropping and resampling, as it works on a scan's own voxels.

    Args:
        keys: of the images, (1, *spatial), raw intensities.
        model: the network's name or folder, or the network.
        modality: "CT" or "MR", of the images; None guesses it from each (`guess_modality`).
        allow_missing_keys: skip keys that a dictionary lacks.

    Raises:
        BundleError: no such network.
        ConfigError: another modality.
    """

    def __init__(
        self,
        keys: KeysCollection,
        model: str | Path | ModelBundle,
        modality: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        bundle = model if isinstance(model, ModelBundle) else load_bundle(model)
        self.rule, self.histogram = bundle.description.rule, bundle.histogram
        self.modality = modality
        if modality is not None:
            replace(self.rule, modality=modality)  # an unknown one is refused before any image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with matched images, float32; their types and metadata stay.

        Raises:
            InputError: no channel, or several, which one histogram cannot match.
            VolumeError, SourceMatchingError: see `match_to_source`.
        """
        found = dict(data)
        for key in self.key_iterator(found):
            array = np.asarray(convert_to_numpy(_tensor(found, key)[0]))
            if array.ndim not in (3, 4) or array.shape[0] != 1:
                raise InputError(
                    f"{key} is (1, *spatial), not of shape {array.shape}. Channels are matched as "
                    "images of their own, before they are joined; EnsureChannelFirstd adds a "
                    "missing one."
                )
            modality = self.modality or guess_modality(array)
            rule = replace(self.rule, modality=modality)
            matched = match_to_source(array, rule, self.histogram).astype(np.float32)
            found[key] = convert_to_dst_type(matched, found[key], dtype=np.float32)[0]
        return found
