"""Response distillation: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).

    KD = T^2 * 1/B * sum_i KL( softmax(t_i / T) || softmax(s_i / T) )

Conventions: "batchmean" (the sum over classes is not averaged: `reduction="mean"` would divide by the number of classes
as well), and T^2 keeps the gradient's size when T changes: d KD / d s_i = T * (p_s - p_t) / B.
"""

import torch
import torch.nn.functional as F


def kd(student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, temperature: float = 4.0) -> torch.Tensor:
    """Scalar loss of two (B, C) tensors of logits, in nats times T^2; computed in float32 or wider.

    Finite in value and gradient for any finite logits: both sides stay in log space.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = F.log_softmax(student_logits.to(dtype) / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.to(dtype) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
