# SPDX-License-Identifier: Apache-2.0
"""The phantom: an anatomy, and scans of it."""
