# SPDX-License-Identifier: Apache-2.0
"""Augmentation of images and labels, semantic-aware random convolution among it."""
