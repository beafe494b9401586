"""From a student's feature to the teacher's shape. Adapters are trained with the student and never leave training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.distillers.taps import Shape
from pipeline.errors import RecipeError


class MapAdapter(nn.Module):
    """(B, C, H, W) -> (B, C', H', W'): pooled or interpolated to the teacher's size, 1x1 convolution, BatchNorm
    (FitNets' regressor, arXiv 1412.6550, in its 1x1 form)."""

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        self.size = (teacher[1], teacher[2])
        self.shrinks = teacher[1] <= student[1] and teacher[2] <= student[2]
        self.convolution = nn.Conv2d(student[0], teacher[0], 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher[0])

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        if feature.shape[2:] != self.size:
            if self.shrinks:
                feature = F.adaptive_avg_pool2d(feature, self.size)
            else:
                feature = F.interpolate(feature, self.size, mode="bilinear", align_corners=False)
        return self.norm(self.convolution(feature))


def make_adapter(student: Shape, teacher: Shape, *, allowed: bool, where: str) -> nn.Module:
    """Identity where the shapes agree already. Raises `RecipeError` where they differ and no adapter is allowed, or
    where none can be made."""
    if student == teacher:
        return nn.Identity()
    shown = f"{'x'.join(map(str, student))} in the student and {'x'.join(map(str, teacher))} in the teacher"
    if not allowed:
        raise RecipeError(f"{where}: features are {shown}; set adapter = 'auto' or name modules of equal shape")
    if len(student) == len(teacher) == 3:
        return MapAdapter(student, teacher)
    if len(student) == len(teacher) == 1:
        return nn.Linear(student[0], teacher[0])
    raise RecipeError(f"{where}: features are {shown}; name two maps or two vectors")
