# SPDX-License-Identifier: Apache-2.0
"""Experiments behind BENCHMARKS.md and their results; not in the wheel."""
