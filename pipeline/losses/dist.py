"""DIST: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher" (arXiv 2205.10536).

    DIST = T^2 * [ beta * (1 - mean_i rho(p_s[i, :], p_t[i, :])) + gamma * (1 - mean_c rho(p_s[:, c], p_t[:, c])) ]

with p = softmax(z / T) and rho the correlation of Pearson. The first part is within an image (inter-class), the second
within a class, over the batch (intra-class): the value depends on the batch as a whole.

Conventions: T^2 as in the public re-implementations (the authors have T = 1, where it makes no difference). A row or
column whose entries are all equal has no correlation; it counts as 0 and gets no gradient, so a batch of one has the
constant gamma * T^2 as its second part. There is no epsilon in the quotient otherwise: with one, classes that are
improbable everywhere would count as uncorrelated even where student and teacher agree.
"""

import torch

from pipeline.losses.numerics import centred, unit, widen


def dist(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Scalar loss of two (B, C) tensors of logits, between 0 and 2 * (beta + gamma) * T^2; float32 or wider."""
    student = (widen(student_logits) / temperature).softmax(1)
    teacher = (widen(teacher_logits) / temperature).softmax(1)
    inter = 1 - _correlation(student, teacher).mean()
    intra = 1 - _correlation(student.T, teacher.T).mean()
    return (beta * inter + gamma * intra) * temperature**2


def _correlation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Pearson's rho of each row of one with the same row of the other, (N,)."""
    return (_standard(student) * _standard(teacher)).sum(1)


def _standard(rows: torch.Tensor) -> torch.Tensor:
    """Rows of mean 0 and norm 1; 0 where what is left of a row after its mean is no more than rounding."""
    deviations = centred(rows)
    noise = 8 * torch.finfo(rows.dtype).eps * rows.detach().abs().amax(1, keepdim=True)
    signal = deviations.detach().abs().amax(1, keepdim=True) > noise
    return unit(torch.where(signal, deviations, 0))
