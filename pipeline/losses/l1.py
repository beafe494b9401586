"""Reconstruction: the mean absolute difference from the target, as super-resolution trains (EDSR, Lim et al., 2017,
arXiv 1707.02921, which found it better than squares even for PSNR).

    L1 = mean over all elements of |s - y|

Conventions: pictures on the scale 0 to 1, the network's raw output is not clipped; the mean is over batch, channels and
pixels.
"""

import torch
import torch.nn.functional as F

from pipeline.losses.numerics import same_pictures, widen


def l1(student_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scalar loss of pictures (B, C, H, W) against targets of the same shape; float32 or wider."""
    same_pictures("l1", student_logits, target, "target")
    return F.l1_loss(widen(student_logits), widen(target))
