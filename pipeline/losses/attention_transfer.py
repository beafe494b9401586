"""Attention transfer: Zagoruyko, Komodakis, "Paying More Attention to Attention" (arXiv 1612.03928).

    AT = sum_l mean_{i, j} (Q_s[l, i, j] - Q_t[l, i, j])^2,    Q = a / ||a||_2,    a = vec(mean over channels of f^2)

Conventions: the mean of squares over batch and places, as the authors' code has it, and not the norm of the
difference as in the paper; their weight of 1000 belongs to this form. Where the maps of a level differ in size, both
are average-pooled to the smaller height and width. The loss does not change when a model's map of one image is
scaled, so the numbers of channels may differ. A map of zeros attends to nothing: it stays 0 and gets no gradient.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import by_largest, same_number, unit, widen


def attention_transfer(
    student_features: Sequence[torch.Tensor], teacher_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Scalar loss, summed over pairs of maps (B, C, H, W) of any C, H and W; float32 or wider."""
    same_number("attention_transfer", student_features, teacher_features)
    levels = [_level(*pair) for pair in zip(student_features, teacher_features, strict=True)]
    return torch.stack(levels).sum()


def _level(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return F.mse_loss(_attention(student, size), _attention(teacher, size))


def _attention(feature: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) -> (B, h * w), rows of norm 1."""
    feature = widen(feature)
    if feature.shape[2:] != size:
        feature = F.adaptive_avg_pool2d(feature, size)
    return unit(by_largest(feature, (1, 2, 3)).square().mean(1).flatten(1))
