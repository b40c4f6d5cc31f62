# SPDX-License-Identifier: Apache-2.0
"""Published settings: what was trained on, what was tested on, and with which preset."""

from dataclasses import dataclass

from ..data.downloads import SITES


@dataclass(frozen=True)
class Setting:
    """A published setting of single-source domain generalisation.

    Attributes:
        preset: the recipe.
        sources: datasets, each of which is the only source once.
        downloads: names for `srcsm prepare-data`, or where the data come from in words.
        targets: datasets to test on, each a column of its own; () tests on all other sources, whose
            cases count together.
        label_map: the source's label for each of the targets', as --map-labels takes it.
        numbers: what was published, in words.
        cases, test_cases: shell patterns of the cases to train and to test on, in all datasets.
        trained_as: name of the setting with the same trainings, which are not repeated.
        sam: the coarse network and the SAM of Wang et al. are trained instead of a network of the
            preset.
    """

    preset: str
    sources: tuple[str, ...]
    downloads: str
    targets: tuple[str, ...] = ()
    label_map: str = ""
    numbers: str = ""
    cases: tuple[str, ...] = ("*",)
    test_cases: tuple[str, ...] = ("*",)
    trained_as: str = ""
    sam: bool = False

    def targets_of(self, source: str) -> tuple[str, ...]:
        """Return the datasets that a network trained on `source` is tested on."""
        return tuple(name for name in self.targets or self.sources if name != source)


HEARTS = ("Dataset211_HeartCT", "Dataset212_HeartMR")
SEQUENCES = ("Dataset201_HeartBSSFP", "Dataset202_HeartLGE")
ACDC = "Dataset203_HeartACDC"

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
        trained_as="whole-heart",
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
        SEQUENCES,
        "MS-CMRSeg 2019 and ACDC as nnU-Net raw datasets; the first two hold the same patients, "
        "as when published",
        targets=(*SEQUENCES, ACDC),
        numbers="bSSFP→LGE: SAA 87.3, SLAug 86.7, CSDG 85.0; LGE→bSSFP: SAA 88.1, all with the "
        "same patients on both sides",
    ),
    "heart-sequences-clean": Setting(
        "cine-fast",
        SEQUENCES,
        "the same datasets; no patient is trained and tested on: cases bssfp_11 to 45 and lge_11 "
        "to 45 train, 01 to 10 and all of ACDC (patient...) test",
        targets=(*SEQUENCES, ACDC),
        cases=("*_1[1-9]", "*_[2-4][0-9]"),
        test_cases=("*_0[1-9]", "*_10", "patient*"),
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
        "montgomery, and CTs of the chest with the label lung as an nnU-Net raw dataset, in slices "
        "of any direction",
        targets=("Dataset411_ChestXray",),
        numbers="ICM 94.15",
    ),
}
"""The settings by name."""
