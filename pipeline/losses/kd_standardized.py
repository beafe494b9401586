"""Logit standardization: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation" (arXiv 2403.01427).

    KD_LS = KD(Z(s), Z(t)),    Z(z) = (z - mean(z)) / (std(z) + 1e-7),    each row for itself

Conventions: std is the unbiased one (divided by C - 1) and T^2 is kept, as in the authors' code; their weights are 9
for this loss and 0.1 for cross-entropy at T = 2. The loss does not change when either model's logits become a * z + b
with a > 0, so it says nothing about the student's scale: a recipe needs cross-entropy beside it.

A row of equal logits has no direction: it is standardized to zeros (the uniform distribution) and gets no gradient.
"""

import torch

from pipeline.losses.kd import kd
from pipeline.losses.numerics import centred, root, widen


def kd_standardized(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, temperature: float = 2.0
) -> torch.Tensor:
    """Scalar loss of two (B, C) tensors of logits, in nats times T^2; computed in float32 or wider."""
    return kd(standardize(student_logits), standardize(teacher_logits), temperature=temperature)


def standardize(logits: torch.Tensor) -> torch.Tensor:
    """Rows of mean 0 and unbiased standard deviation 1; float32 or wider."""
    deviations = centred(widen(logits))
    std = root(deviations.square().sum(1, keepdim=True) / max(1, logits.shape[1] - 1))
    alive = std.detach() > 0
    return torch.where(alive, deviations / (torch.where(alive, std, 1) + 1e-7), 0)
