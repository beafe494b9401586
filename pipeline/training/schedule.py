"""Learning rates as pure functions of the step. Only reduce-on-plateau has state, and that is one small value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe import Training


def learning_rate(config: Training, step: int, steps_per_epoch: int, *, plateau_factor: float = 1.0) -> float:
    """The rate of optimizer step `step` (0-based).

    Warm-up rises linearly to `lr` over warmup_epochs (the first step already moves); cosine falls from `lr` to `min_lr`
    over what is left (Loshchilov & Hutter, 2017, arXiv 1608.03983, without restarts); step and multistep multiply by
    gamma at whole epochs counted from 0.
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    epoch = step / steps_per_epoch
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "step":
        return config.lr * config.gamma ** math.floor(epoch / config.step_epochs)
    if config.schedule == "multistep":
        return config.lr * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.schedule == "plateau":
        return max(config.min_lr, config.lr * plateau_factor)
    return config.lr


@dataclass
class Plateau:
    """Reduce on plateau: multiply by gamma after `patience` epochs without a better value. Goes into the checkpoint."""

    best: float = -math.inf
    waited: int = 0
    factor: float = 1.0

    def update(self, value: float, *, patience: int, gamma: float) -> None:
        """Take an epoch's validation accuracy (higher is better)."""
        if value > self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= patience:
            self.factor, self.waited = self.factor * gamma, 0
