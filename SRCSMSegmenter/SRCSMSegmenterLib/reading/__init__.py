# SPDX-License-Identifier: Apache-2.0
"""Readers of volumes, a module for each format; `volume_io` is what others call."""
