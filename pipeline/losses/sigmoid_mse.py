"""Response distillation of edge maps: paper 003 (Shree Hari, Suryaa), mean squared error between sigmoids.

    MSE = mean over all pixels of (sigmoid(s) - sigmoid(t))^2

Conventions: the mean is over batch, channels and places. The gradient vanishes where the student is surely wrong
(sigmoid' is 0 there): it is a companion of `binary_cross_entropy`, which does not.
"""

import torch

from pipeline.losses.numerics import same_pictures, widen


def sigmoid_mse(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Scalar loss of two tensors of logits (B, C, H, W); float32 or wider. ValueError when the shapes differ."""
    same_pictures("sigmoid_mse", student_logits, teacher_logits, "teacher output")
    return (widen(student_logits).sigmoid() - widen(teacher_logits).sigmoid()).square().mean()
