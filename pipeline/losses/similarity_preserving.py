"""Similarity-preserving distillation: Tung, Mori, "Similarity-Preserving Knowledge Distillation" (arXiv 1907.09682).

    SP = 1/B^2 * || N(G_s) - N(G_t) ||_F^2,    G = F F^T,    F the features as (B, C * H * W)

N divides each row by its L2 norm. The value depends on the batch as a whole.

Conventions: the last map before pooling and a weight of 3000, as in RepDistiller. The loss does not change when all
of a model's features are scaled together. An image whose feature is 0 resembles none: its row stays 0.
"""

import torch

from pipeline.losses.numerics import by_largest, product, unit, widen


def similarity_preserving(student_feature: torch.Tensor, teacher_feature: torch.Tensor) -> torch.Tensor:
    """Scalar loss of two tensors (B, ...) that need agree in B alone; float32 or wider."""
    difference = _similarities(student_feature) - _similarities(teacher_feature)
    return difference.square().sum() / len(student_feature) ** 2


def _similarities(feature: torch.Tensor) -> torch.Tensor:
    """(B, B), rows of norm 1."""
    flat = by_largest(widen(feature).flatten(1), (0, 1))
    return unit(product(flat, flat.T))
