"""The image classification net of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597; `resnet_v1_eembc` there).

A ResNet of three stacks with one block each: 78,186 parameters at 10 classes and 3 channels, 12,501,632 MACs at 32x32.
Unlike the CIFAR ResNets, convolutions have a bias, and the 1x1 shortcuts have one too but no batch norm.
Two things differ from the Keras original, neither in parameters nor MACs: strided convolutions pad symmetrically (Keras
pads right and bottom only), and batch norm has torch's momentum and epsilon.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Stack(nn.Module):
    """Two 3x3 convolutions and a residual sum; a 1x1 convolution fits the shortcut where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Identity() if stride == 1 and in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class MlperfResNet8(nn.Module):
    """(N, in_channels, H, W) float, normalised -> logits (N, num_classes)."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.stack1 = Stack(16, 16, 1)
        self.stack2 = Stack(16, 32, 2)
        self.stack3 = Stack(32, 64, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):  # he_normal and zero bias, as in the original
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stack3(self.stack2(self.stack1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def mlperf_resnet8(num_classes: int = 10, in_channels: int = 3) -> MlperfResNet8:
    """MLPerf Tiny's ResNet-8; its reference weights reach 87 % on CIFAR-10 in fp32."""
    return MlperfResNet8(num_classes=num_classes, in_channels=in_channels)
