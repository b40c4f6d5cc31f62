# SPDX-License-Identifier: Apache-2.0
"""Published settings: what was trained on, what was tested on, and with which preset."""

from dataclasses import dataclass

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.schema import nearest

from ..data.downloads import SITES


@dataclass(frozen=True)
class Setting:
    """A published setting of single-source domain generalisation.

    Attributes:
        preset: the recipe.
        sources: datasets, each of which is the only source once.
        downloads: names for `srcsm prepare-data`, or where the data come from in words.
        targets: datasets to test on; () tests on all other sources.
        label_map: the source's label for each of the targets', as --map-labels takes it.
        numbers: what was published, in words.
        sam: the coarse network and the SAM of Wang et al. are trained instead of a network of the
            preset.
    """

    preset: str
    sources: tuple[str, ...]
    downloads: str
    targets: tuple[str, ...] = ()
    label_map: str = ""
    numbers: str = ""
    sam: bool = False

    def targets_of(self, source: str) -> tuple[str, ...]:
        """Return the datasets that a network trained on `source` is tested on."""
        return tuple(name for name in self.targets or self.sources if name != source)


HEARTS = ("Dataset211_HeartCT", "Dataset212_HeartMR")

SETTINGS = {
    "abdomen": Setting(
        "abdomen-paper",
        ("Dataset101_AbdomenCT", "Dataset102_AbdomenMR"),
        "BTCV and CHAOS (or AMOS) as nnU-Net raw datasets",
        numbers="cut scans: SLAug 88.6 CT→MR, 81.7 MR→CT; ICM 86.2, 90.2",
    ),
    "whole-heart": Setting("heart-paper", HEARTS, "mm-whs"),
    "whole-heart-4": Setting(
        "heart-paper",
        HEARTS,
        "mm-whs; left ventricle, left atrium, myocardium and aorta are scored",
        label_map="1:1,3:3,5:5,6:6",
    ),
    "cine": Setting(
        "cine-paper",
        HEARTS,
        "mm-whs, mnms-2",
        targets=("Dataset221_HeartMnMs2",),
        label_map="1:1,5:2,2:3",
    ),
    "heart-sequences": Setting(
        "cine-fast",
        ("Dataset201_HeartBSSFP", "Dataset202_HeartLGE"),
        "MS-CMRSeg 2019 as nnU-Net raw datasets; both hold the same patients, as when published",
        numbers="bSSFP→LGE: SAA 87.3, SLAug 86.7, CSDG 85.0; LGE→bSSFP: SAA 88.1",
    ),
    "prostate-six-sites": Setting(
        "prostate-paper",
        tuple(SITES.values()),
        "prostate-six-sites",
        numbers="SAMMed 79.54",
    ),
    "prostate-six-sites-sam": Setting(
        "DeepLabV3-ResNet-50, and a mask decoder of SAM for each kind of box",
        tuple(SITES.values()),
        "prostate-six-sites; --sam sam_vit_b_01ec64.pth --backbone resnet50-*.pth",
        numbers="filtered boxes 79.54 (sites A to F: 84.08, 77.29, 73.98, 82.40, 80.47, 79.04); "
        "coarse network alone 72.26, unfiltered boxes 72.30, whole image as box 74.41, true boxes "
        "91.53",
        sam=True,
    ),
    "lumbar-spine": Setting(
        "icm-spine",
        ("Dataset401_SpineCT", "Dataset402_SpineMR"),
        "verse, spider",
        numbers="ICM 83.15 CT→MR",
    ),
    "chest-xray": Setting(
        "icm-chest",
        ("Dataset410_ChestCT",),
        "montgomery, and CTs of lungs in coronal slices as an nnU-Net raw dataset",
        targets=("Dataset411_ChestXray",),
        numbers="ICM 94.15",
    ),
}
"""The settings by name."""


def published_setting(name: str) -> Setting:
    """Return the setting of a name.

    Raises:
        ConfigError: no setting has that name.
    """
    if name not in SETTINGS:
        known = ", ".join(SETTINGS)
        raise ConfigError(f'No setting "{name}"{nearest(name, SETTINGS)}; there are: {known}.')
    return SETTINGS[name]
