"""Cross-entropy with the labels, optionally smoothed: Szegedy et al., 2016 (arXiv 1512.00567).

    CE = 1/N * sum_i sum_c q_i[c] * -log softmax(s_i)[c],    q = (1 - e) * label + e / C * (mass of the label)

Conventions: a label is a class, or a row of soft labels whose mass may be below 1 (an image mixed with an unlabelled
one). -1 is no label: such images are left out, of the mean too (N counts the others). Rows of soft labels all count in
N, so that a row of mass 1/2 pulls half as much.
"""

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import widen

UNLABELLED = -1


def cross_entropy(student_logits: torch.Tensor, target: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Scalar loss in nats of logits (B, C) against classes (B,) int64, -1 for none, or soft labels (B, C) float.

    0 with zero gradient when no image of the batch has a label. Computed in float32 or wider.
    """
    log_p = F.log_softmax(widen(student_logits), dim=1)
    smooth = label_smoothing / log_p.shape[1]
    if target.is_floating_point():
        soft = target.to(log_p.dtype)
        labels = (1 - label_smoothing) * soft + smooth * soft.sum(1, keepdim=True)
        return -(labels * log_p).sum(1).mean()
    labelled = target != UNLABELLED
    picked = log_p.gather(1, torch.where(labelled, target, 0)[:, None]).squeeze(1)
    each = (1 - label_smoothing) * picked + smooth * log_p.sum(1)
    return -torch.where(labelled, each, 0).sum() / labelled.sum().clamp(min=1)
