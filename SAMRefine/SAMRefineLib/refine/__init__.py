# SPDX-License-Identifier: Apache-2.0
"""Refinement of organs: prompts, accepted masks, the order of work, the worker."""
