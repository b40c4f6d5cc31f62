# SPDX-License-Identifier: Apache-2.0
"""Style intervention by diffusion (Chen et al., WACV 2025, arXiv 2411.05223), stage by stage.

prepare   nnU-Net raw dataset -> slices with masks                       prepare.py
phantom   phantom slices in several looks, to train a small base on      phantom_slices.py
base      a small base model of our own                                  small.py
tune      DreamBooth: the base's U-Net learns the source's style         tune.py
control   a ControlNet on the tuned U-Net learns what masks mean         control.py
swap      it steers the original U-Net to other styles                   swap.py

`slices.py` describes the files that lie between the stages, `base.py` reads base models,
`diffusion.py` has the training loop and the sampler, `config.py` the configuration of all stages.
"""
