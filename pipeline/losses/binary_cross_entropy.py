"""Binary cross-entropy of every pixel, edges weighted: what paper 003 (Shree Hari, Suryaa) trains edge detectors with.

    BCE = mean over all pixels of  -(w * y * log sigmoid(s) + (1 - y) * log(1 - sigmoid(s)))

Conventions: w is `pos_weight` (10 in the paper), y in [0, 1], the mean is over batch, channels and places, as PyTorch's
`binary_cross_entropy_with_logits`.
"""

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import same_pictures, widen


def binary_cross_entropy(
    student_logits: torch.Tensor, target: torch.Tensor, *, pos_weight: float = 10.0
) -> torch.Tensor:
    """Scalar loss in nats of logits and targets in [0, 1], both (B, C, H, W); float32 or wider, finite for any logits.

    ValueError when the shapes differ.
    """
    same_pictures("binary_cross_entropy", student_logits, target, "target")
    logits = widen(student_logits)
    weight = torch.as_tensor(pos_weight, dtype=logits.dtype, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), pos_weight=weight)
