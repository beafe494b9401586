"""Paper 002's residual networks for photographs of 150x150 pixels: a teacher of 12 blocks, students of 10, 8, 6 and 4.

Blocks come in pairs: one that keeps its channels, one that doubles them and halves the image. The head has hidden
layers with batch norm and dropout: two in the teacher (512, 256), one of half the pooled width in the students.
(The layer widths printed in the paper belong to a setting that its code ignores; these give its published counts.)
Names follow the authors' public code where theirs were one layer apart: `layer1` to `layer12`, `fc1`, `fc_bn1`, ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.cifar_resnet import BasicBlock

STEM = 16
TEACHER = 12


class SceneCnn(nn.Module):
    """(N, in_channels, H, W) float, normalised -> logits (N, num_classes)."""

    def __init__(self, *, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        channels = STEM
        for index in range(1, blocks + 1):
            doubles = index % 2 == 0
            after = 2 * channels if doubles else channels
            self.add_module(f"layer{index}", BasicBlock(channels, after, 2 if doubles else 1, "B"))
            channels = after
        widths = [channels, channels // 2, channels // 4] if blocks == TEACHER else [channels, channels // 2]
        self.hidden = len(widths) - 1
        for index in range(1, self.hidden + 1):
            self.add_module(f"fc{index}", nn.Linear(widths[index - 1], widths[index]))
            self.add_module(f"fc_bn{index}", nn.BatchNorm1d(widths[index]))
        self.add_module(f"fc{self.hidden + 1}", nn.Linear(widths[-1], num_classes))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(1, self.blocks + 1):
            x = self.get_submodule(f"layer{index}")(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        for index in range(1, self.hidden + 1):
            x = self.get_submodule(f"fc{index}")(x)
            x = self.dropout(F.relu(self.get_submodule(f"fc_bn{index}")(x)))
        return self.get_submodule(f"fc{self.hidden + 1}")(x)


def scene_cnn(num_classes: int = 6, in_channels: int = 3, *, blocks: int = TEACHER) -> SceneCnn:
    """12 blocks: 26.5 M parameters; 10: 6.60 M; 8: 1.65 M; 6: 409 k; 4: 98 k, at 6 classes."""
    return SceneCnn(blocks=blocks, num_classes=num_classes, in_channels=in_channels)
