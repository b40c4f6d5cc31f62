# SPDX-License-Identifier: Apache-2.0
"""Style intervention by diffusion (Chen et al., WACV 2025, arXiv 2411.05223), stage by stage.

prepare   nnU-Net raw dataset -> slices with masks                       prepare.py
phantom   phantom slices in several styles, to train a small base on     phantom_slices.py
base      a small base model, trained here                               small.py
tune      DreamBooth: the base's U-Net learns the source's style         tune.py
control   a ControlNet on the tuned U-Net learns what masks mean         control.py
swap      it steers the original U-Net to other styles                   swap.py
check     restyled slices are measured, bad ones set aside               check.py

`slices.py` describes the files between the stages, `base.py` reads base models, `diffusion.py` has
noise, latents and the sampler, `stage.py` the training of a stage by `engine.fit`, and `config.py`
the configuration of all stages. `small_base.py` and `tokenizer.py` build the small base,
`measures.py` and `report.py` serve the check.
"""
