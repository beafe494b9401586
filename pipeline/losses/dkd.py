"""Decoupled distillation: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation" (arXiv 2203.08679).

    DKD = T^2 * 1/B * sum_i [ alpha * TCKD_i + beta * NCKD_i ],    p = softmax(z / T),    y the true class
    TCKD = KL( (p_t[y], 1 - p_t[y]) || (p_s[y], 1 - p_s[y]) )
    NCKD = KL( p_t[c] / (1 - p_t[y]) || p_s[c] / (1 - p_s[y]) )  over the classes c other than y

Conventions: KL(p_t || p_s) = TCKD + (1 - p_t[y]) * NCKD, so that beta frees the second part from the teacher's doubt.
The authors' beta is 8, 6 or 2 by pair, and their whole loss grows from 0 over 20 epochs (`warmup_epochs` of the term).

The other classes are gathered, where the public code takes 1000 off the true class's logit, and 1 - p[y] is the
log-sum-exp of the others, where it sums probabilities that may all be 0: both stay exact for any finite logits.
"""

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import widen


def dkd(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    target: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> torch.Tensor:
    """Scalar loss of two (B, C) tensors of logits, C at least 2, and the true classes (B,) int64; float32 or wider.

    TypeError for a target of soft labels and ValueError for a single class: neither has the two parts.
    """
    if target.is_floating_point():
        raise TypeError("dkd: target holds soft labels; expected one true class (int64) an image")
    if student_logits.shape[1] < 2:
        raise ValueError("dkd: logits of one class; expected two or more")
    student_pair, student_others = _parts(student_logits, target, temperature)
    teacher_pair, teacher_others = _parts(teacher_logits, target, temperature)
    target_class = F.kl_div(student_pair, teacher_pair, reduction="batchmean", log_target=True)
    other_classes = F.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True)
    return (alpha * target_class + beta * other_classes) * temperature**2


def _parts(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of (true class, any other) as (B, 2), and of each other class among the others, (B, C - 1)."""
    scaled = widen(logits) / temperature
    true, others = target[:, None], torch.arange(logits.shape[1] - 1, device=logits.device)
    rest = scaled.gather(1, others + (others >= true))
    pair = torch.cat([scaled.gather(1, true), rest.logsumexp(1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(rest, dim=1)
