"""One batch as student and teacher see it: the same pixels for both, and enough to make them again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class View:
    """Augmented images with where they came from.

    images: uint8 (B, C, H, W) in channels-last memory, mixed already where mixing is on. sample_ids: int64 (B,), places
    in the source. partner_ids: int64 (B,) and partner_weight: float32 (B,), the partner's share of the label, in
    [0, 1]; both None when nothing is mixed.
    """

    images: torch.Tensor
    sample_ids: np.ndarray
    epoch: int
    partner_ids: np.ndarray | None = None
    partner_weight: torch.Tensor | None = None
