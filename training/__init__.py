# SPDX-License-Identifier: Apache-2.0
"""Headless training, evaluation and benchmarks (installed as ``srcsm_training``)."""
