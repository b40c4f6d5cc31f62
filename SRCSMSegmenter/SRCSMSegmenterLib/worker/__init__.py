# SPDX-License-Identifier: Apache-2.0
"""The worker process, its client, and the protocol between them."""
