"""Relational distillation: Park, Kim, Lu, Cho, "Relational Knowledge Distillation" (arXiv 1904.05068).

    RKD = w_d * mean_ij h(d_s[i, j] / m_s - d_t[i, j] / m_t) + w_a * mean_ijk h(cos_s[i, j, k] - cos_t[i, j, k])

with d[i, j] = ||e_i - e_j||, m the mean of the distances above 0, cos[i, j, k] the cosine of the angle at e_i between
e_j and e_k, and h Huber's function (smooth L1 at 1). The value depends on the batch as a whole.

Conventions: means over all B^2 pairs and B^3 triples, the degenerate ones (0 on both sides) among them, as in the
authors' code; the weights 25 and 50 are inside, so a term's weight is 1. Neither part changes when either model's
embeddings are rotated, moved or scaled together. Two equal embeddings are at distance 0 and span no angle; that gets
no gradient.

Memory grows with B^2 * D and B^3: 1024 images take 4.3 GB for the angles in float32.
"""

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import by_largest, product, root, widen


def rkd(
    student_embedding: torch.Tensor,
    teacher_embedding: torch.Tensor,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> torch.Tensor:
    """Scalar loss of embeddings (B, D) and (B, D'); D may differ from D'. Computed in float32 or wider."""
    student_way, student_distance = _pairs(student_embedding)
    teacher_way, teacher_distance = _pairs(teacher_embedding)
    loss = distance_weight * F.smooth_l1_loss(_relative(student_distance), _relative(teacher_distance))
    if angle_weight == 0:
        return loss
    student_cosine = _cosines(student_way, student_distance)
    return loss + angle_weight * F.smooth_l1_loss(student_cosine, _cosines(teacher_way, teacher_distance))


def _pairs(embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, D) -> the ways e_j - e_i, (B, B, D), and their lengths, (B, B); up to one scale for the whole batch.

    From the differences themselves: the difference of squares loses what tells near embeddings apart.
    """
    embedding = widen(embedding)
    way = by_largest(embedding[None] - embedding[:, None], (0, 1, 2))
    return way, root(way.square().sum(-1))


def _relative(distance: torch.Tensor) -> torch.Tensor:
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1)


def _cosines(way: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """(B, B, B): at [i, j, k] the cosine at i between j and k; 0 where i is at the same place as one of them."""
    apart = distance > 0
    direction = torch.where(apart[..., None], way / torch.where(apart, distance, 1)[..., None], 0)
    return product(direction, direction.transpose(1, 2))
