# SPDX-License-Identifier: Apache-2.0
"""Datasets, prepared cases, and datasets of phantoms."""
