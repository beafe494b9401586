"""Output distillation of pictures: the mean absolute difference from what the teacher gives.

    OUT = mean over all elements of |s - t|

As in distillation for image restoration (He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient
Image Super-Resolution", ICIP 2020, `L_TS`), where it stands beside `l1`. Conventions: raw outputs on both sides, on the
scale 0 to 1, not clipped; the mean is over batch, channels and pixels.
"""

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import same_pictures, widen


def output_l1(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Scalar loss of two pictures (B, C, H, W) of one shape; float32 or wider."""
    same_pictures("output_l1", student_logits, teacher_logits, "teacher")
    return F.l1_loss(widen(student_logits), widen(teacher_logits))
