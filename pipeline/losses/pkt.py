"""Probabilistic transfer: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer"
(arXiv 1803.10837).

    PKT = 1/B^2 * sum_{i, j} P_t[i, j] * log( (P_t[i, j] + e) / (P_s[i, j] + e) ),    e = 1e-7
    P[i, j] = k(i, j) / sum_m k(i, m),    k(i, j) = (cos(e_i, e_j) + 1) / 2

The value depends on the batch as a whole.

Conventions: the mean over B^2 pairs, an image with itself among them, as in the authors' code: hence the usual weight
of 30000. The loss does not change when any one embedding is scaled. An embedding of zeros has cosine 0 to all.
"""

import torch

from pipeline.losses.numerics import product, unit, widen

EPSILON = 1e-7


def pkt(student_embedding: torch.Tensor, teacher_embedding: torch.Tensor) -> torch.Tensor:
    """Scalar loss of embeddings (B, D) and (B, D'); D may differ from D'. Computed in float32 or wider."""
    student, teacher = _affinities(student_embedding), _affinities(teacher_embedding)
    return (teacher * ((teacher + EPSILON).log() - (student + EPSILON).log())).mean()


def _affinities(embedding: torch.Tensor) -> torch.Tensor:
    """(B, B), rows that sum to 1."""
    direction = unit(widen(embedding))
    # A cosine is rounded to a little below -1 at times, and a probability must not be negative.
    kernel = ((product(direction, direction.T) + 1) / 2).clamp(min=0)
    return kernel / kernel.sum(1, keepdim=True)
