# SPDX-License-Identifier: Apache-2.0
"""Readers of volumes, a module for each format; others call `volume_io`."""
