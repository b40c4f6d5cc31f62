# SPDX-License-Identifier: Apache-2.0
"""The options and help texts of ``srcsm``: a module for each of the `commands`, under its name.

Nothing heavy is imported here, so that help is instant.
"""
