"""The end of a training whose loss is no number any more."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError


class FiniteGuard:
    """Stops at the first loss that is not finite. On a GPU it looks every few steps, to keep the queue full."""

    def __init__(self, label: str, *, every: int) -> None:
        self.label, self.every = label, every
        self.pending: list[tuple[torch.Tensor, int, int, np.ndarray]] = []

    def check(self, total: torch.Tensor, epoch: int, step: int, indices: Any) -> None:
        self.pending.append((total, epoch, step, np.asarray(indices)))
        if len(self.pending) >= self.every:
            self.flush()

    def flush(self) -> None:
        for total, epoch, step, indices in self.pending:
            if not torch.isfinite(total):
                raise UserError(
                    f"{self.label}: the loss is {float(total)} at epoch {epoch + 1}, step {step + 1} "
                    f"(samples {indices[:4].tolist()}…); lower lr, add warmup_epochs or clip_norm, "
                    "or set precision = 'fp32'"
                )
        self.pending.clear()
