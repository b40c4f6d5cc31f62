# SPDX-License-Identifier: Apache-2.0
"""Tasks of a worker whose SAM is that of picture_sam.py; for the worker's process alone."""

import os

from picture_sam import Pictures, decode

from SAMRefineLib.refine.tasks import TASKS as REAL
from SAMRefineLib.sam import embeddings, prediction

embeddings.EmbeddingCache = Pictures
prediction.decode = decode


def wait(parameters, arrays, context):
    """Go on until cancelled."""
    from SRCSMSegmenterLib.errors import Cancelled

    while not context.cancelled():
        pass
    raise Cancelled("cancelled")


def looks(parameters, arrays, context):
    """Encoder passes so far."""
    return {"passes": context.models.get("embeddings", Pictures).passes}, {}


def who(parameters, arrays, context):
    """This process."""
    return {"pid": os.getpid()}, {}


TASKS = {**REAL, "wait": wait, "looks": looks, "who": who}
