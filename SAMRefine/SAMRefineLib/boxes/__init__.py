# SPDX-License-Identifier: Apache-2.0
"""Boxes and coarse masks on the slices of a scan."""
