"""ReviewKD's hierarchical context loss: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review"
(arXiv 2104.09044).

    HCL = sum over maps of [ MSE(f_s, f_t) + sum_k 2^-k * MSE(pool(f_s, l_k), pool(f_t, l_k)) ] / [ 1 + sum_k 2^-k ]

with l = 4, 2, 1 in turn, average pooling to l x l, and the sizes l that are not below the map's own left out (k counts
those that stay).

Conventions: MSE is the mean over all elements; the sum over maps is not divided by their number. It is the distance
alone; ReviewKD's fusion of the student's maps is `review_kd`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import same_number, same_shapes, widen

SIZES = (4, 2, 1)


def hierarchical_context(
    student_features: Sequence[torch.Tensor], teacher_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Scalar loss, summed over pairs of maps of equal shape, (B, C, H, W) or (B, C); float32 or wider.

    ValueError when the lists or the shapes of a pair differ.
    """
    same_number("hierarchical_context", student_features, teacher_features)
    levels = [_level(*pair) for pair in zip(student_features, teacher_features, strict=True)]
    return torch.stack(levels).sum()


def as_map(feature: torch.Tensor) -> torch.Tensor:
    """(B, C) as a map of one place, (B, C, 1, 1); a map as it is."""
    return feature[:, :, None, None] if feature.dim() == 2 else feature


def _level(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    student, teacher = as_map(widen(student)), as_map(widen(teacher))
    same_shapes("hierarchical_context", student, teacher)
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in SIZES:
        if size >= min(student.shape[2:]):
            continue
        weight /= 2
        pooled = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
        loss = loss + weight * F.mse_loss(*pooled)
        total += weight
    return loss / total
