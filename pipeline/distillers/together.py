"""A learner whose forward and backward pass several processes share: each takes an equal part of every batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase

from pipeline.distillers.learner import Learner
from pipeline.distillers.objective import Objective
from pipeline.errors import UserError
from pipeline.losses import RELATION
from pipeline.training.distributed import Ranks


def together(
    learner: Learner, ranks: Ranks, batch_size: int, labels: np.ndarray, *, say: Callable[[str], None], label: str
) -> torch.nn.Module:
    """What each process calls in the place of `learner`: its gradients are those of the whole batch.

    labels: int64 (N,) of the training images. Raises UserError for a batch larger than their number: the shares would
    not be equal.
    """
    count, world = len(labels), ranks.world
    if batch_size > count:
        raise UserError(
            f"{label}: batch_size = {batch_size} is above the number of training images; for equal shares of {world} "
            f"processes set it to {count // world * world} or less"
        )
    for part in learner.modules():
        if isinstance(part, Objective):
            part.whole = ranks.whole
            if (labels < 0).any():  # a mean over the labelled images, of which each process may have another number
                part.of_whole_batch = RELATION | {"cross_entropy"}
    apart = any(isinstance(part, _NormBase) for part in learner.modules())
    say(
        f"{label}: {world} processes with {batch_size // world} images each of a batch of {batch_size}"
        + ("; BatchNorm normalises each share by itself" if apart else "")
    )
    return ranks.together(learner)
