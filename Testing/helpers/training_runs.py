# SPDX-License-Identifier: Apache-2.0
"""Trainings of `tiny`."""

import tiny
from accelerate import Accelerator

from srcsm_training.engine.accelerator import Computing
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.run_folder import case_identity, open_run
from srcsm_training.segmentation import training
from SRCSMSegmenterLib.intensity import IntensityRule

RULE = IntensityRule("CT", window=(-125, 275))
SILENT = Limits(say=lambda line: None)


def train(
    config, cases, folder, *, mixed_precision="no", cpu=True, scaler=None, preview=None, **limits
):
    tiny.forget_accelerator()
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision)
    accelerator.scaler = scaler or accelerator.scaler
    names = [[case.name for case in group] for group in cases]
    opened = open_run(
        folder,
        config,
        Computing(accelerator, "asked for"),
        identity=case_identity(config, *names),
        tell=lambda line: None,
        labels=list(tiny.LABELS)[1:],
    )
    preview = preview or (lambda network, progress: None)
    return training.train(opened, RULE, *cases, preview=preview, limits=Limits(**limits))
