"""FitNets' hint: Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets"
(arXiv 1412.6550).

    HINT = mean over all elements of (f_s - f_t)^2

Conventions: the mean is over batch, channels and places, as everywhere but in the paper (which has half the sum), so
the usual weight is 100. The regressor from the student's channels to the teacher's is no part of the loss: it is the
term's adapter. The paper's two stages are one here.
"""

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import same_shapes, widen


def hint(student_feature: torch.Tensor, teacher_feature: torch.Tensor) -> torch.Tensor:
    """Scalar loss of two tensors of one shape, (B, ...); float32 or wider. ValueError when the shapes differ."""
    same_shapes("hint", student_feature, teacher_feature)
    return F.mse_loss(widen(student_feature), widen(teacher_feature))
