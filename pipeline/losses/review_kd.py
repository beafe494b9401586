"""ReviewKD whole: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review" (arXiv 2104.09044).

From the deepest level up, each student map x_l is fused with what the level below it (deeper) has passed on, y:

    x = BN(conv1x1(x_l))                          to the middle number of channels
    [z_x, z_y] = sigmoid(conv1x1([x, up(y)]))     attention, one map for each (no fusion at the deepest level)
    y = x * z_x + up(y) * z_y                     passed on, at the teacher's size
    out_l = BN(conv3x3(y))                        to the teacher's channels

and HCL (`hierarchical_context`) compares all out_l with the teacher's maps.

Conventions: up is nearest-neighbour; the middle has as many channels as the student's deepest map, 512 at most. The
maps stand from shallow to deep; the last is usually the pooled feature, as (B, C). The authors take maps before the
last ReLU of each stage, weights between 0.6 and 8 by pair, and let the weight grow over 20 epochs (`warmup_epochs` of
the term).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.losses.hierarchical_context import as_map, hierarchical_context
from pipeline.losses.numerics import same_number, widen

MOST_CHANNELS = 512


class ReviewKD(nn.Module):
    """Call with the student's and the teacher's maps, shallow to deep; trained together with the student."""

    def __init__(
        self,
        *,
        student_shapes: Sequence[tuple[int, ...]],
        teacher_shapes: Sequence[tuple[int, ...]],
        samples: int = 0,
        num_classes: int = 0,
    ) -> None:
        """Shapes without the batch, (C, H, W) or (C,), paired; `samples` and `num_classes` are unused."""
        super().__init__()
        same_number("review_kd", student_shapes, teacher_shapes)
        middle = min(MOST_CHANNELS, student_shapes[-1][0])
        deepest = len(student_shapes) - 1
        self.fusions = nn.ModuleList(
            Fusion(student[0], middle, teacher[0], size=_size(teacher), fuse=level < deepest)
            for level, (student, teacher) in enumerate(zip(student_shapes, teacher_shapes, strict=True))
        )

    def forward(
        self, student_features: Sequence[torch.Tensor], teacher_features: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Scalar loss in float32 or wider; ValueError when the lists differ in length."""
        same_number("review_kd", student_features, teacher_features)
        outputs: list[torch.Tensor] = []
        passed: torch.Tensor | None = None
        for fusion, feature in zip(reversed(self.fusions), reversed(student_features), strict=True):
            out, passed = fusion(as_map(widen(feature)), passed)
            outputs.insert(0, out)
        return hierarchical_context(outputs, teacher_features)


class Fusion(nn.Module):
    """One level (the paper's ABF): the student's map and the deeper level's, fused, in the teacher's shape."""

    def __init__(self, student: int, middle: int, teacher: int, *, size: tuple[int, int], fuse: bool) -> None:
        super().__init__()
        self.size = size
        self.enter = nn.Sequential(nn.Conv2d(student, middle, 1, bias=False), _Norm(middle))
        self.leave = nn.Sequential(nn.Conv2d(middle, teacher, 3, padding=1, bias=False), _Norm(teacher))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        for convolution in (self.enter[0], self.leave[0]):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, feature: torch.Tensor, passed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, H, W) and the deeper level's map -> (what is compared, what is passed on)."""
        fused = self.enter(feature)
        if self.attention is not None:
            assert passed is not None, "only the deepest level has nothing passed on to it"
            passed = F.interpolate(passed, fused.shape[2:], mode="nearest")
            share = self.attention(torch.cat([fused, passed], dim=1)).sigmoid()
            fused = fused * share[:, :1] + passed * share[:, 1:]
        if fused.shape[2:] != self.size:
            fused = F.interpolate(fused, self.size, mode="nearest")
        return self.leave(fused), fused


class _Norm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a channel has a single value (one image, pooled)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)
