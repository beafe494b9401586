"""RFDN: Liu, Tang, Wu, "Residual Feature Distillation Network for Lightweight Image Super-Resolution", 2020
(arXiv 2009.11551).

The form that won AIM 2020's challenge and was NTIRE 2022's baseline: four blocks of 50 channels, 433,448 parameters at
x4. The names of its parts are those of the published checkpoints, which load strictly. Those take and give values of
0 to 255; `levels` scales on the way in and out, so that this module takes and gives 0 to 1 as every other here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SLOPE = 0.05  # of every leaky ReLU


class SpatialAttention(nn.Module):
    """Enhanced spatial attention: the map times a sigmoid that sees a wide, coarse field. Needs sides of 15 or more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = channels // 4
        self.conv1 = nn.Conv2d(channels, few, 1)
        self.conv_f = nn.Conv2d(few, few, 1)
        self.conv_max = nn.Conv2d(few, few, 3, padding=1)
        self.conv2 = nn.Conv2d(few, few, 3, stride=2)
        self.conv3 = nn.Conv2d(few, few, 3, padding=1)
        self.conv3_ = nn.Conv2d(few, few, 3, padding=1)
        self.conv4 = nn.Conv2d(few, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.conv1(x)
        coarse = F.max_pool2d(self.conv2(reduced), 7, stride=3)
        coarse = F.relu(self.conv3(F.relu(self.conv_max(coarse))))
        wide = F.interpolate(self.conv3_(coarse), (x.shape[2], x.shape[3]), mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(wide + self.conv_f(reduced)))


class Block(nn.Module):
    """Residual feature distillation: three shallow residual steps, each of which hands half of its channels on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.c1_d = nn.Conv2d(channels, half, 1)
        self.c1_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2_d = nn.Conv2d(channels, half, 1)
        self.c2_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c3_d = nn.Conv2d(channels, half, 1)
        self.c3_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c4 = nn.Conv2d(channels, half, 3, padding=1)
        self.c5 = nn.Conv2d(4 * half, channels, 1)
        self.esa = SpatialAttention(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for hand_on, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            kept.append(F.leaky_relu(hand_on(x), SLOPE))
            x = F.leaky_relu(refine(x) + x, SLOPE)
        kept.append(F.leaky_relu(self.c4(x), SLOPE))
        return self.esa(self.c5(torch.cat(kept, dim=1)))


class RFDN(nn.Module):
    """(N, in_channels, H, W) float in [0, 1] -> (N, out_channels, scale * H, scale * W), not clipped. H, W >= 15."""

    def __init__(self, *, in_channels: int, out_channels: int, channels: int, scale: int, levels: float) -> None:
        super().__init__()
        self.levels = levels
        self.fea_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.B1 = Block(channels)
        self.B2 = Block(channels)
        self.B3 = Block(channels)
        self.B4 = Block(channels)
        self.c = nn.Sequential(nn.Conv2d(4 * channels, channels, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(channels, out_channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shallow = self.fea_conv(x * self.levels)
        first = self.B1(shallow)
        second = self.B2(first)
        third = self.B3(second)
        fourth = self.B4(third)
        deep = self.c(torch.cat([first, second, third, fourth], dim=1))
        return self.upsampler(self.LR_conv(deep) + shallow) / self.levels


def rfdn(
    num_classes: int = 3, in_channels: int = 3, *, channels: int = 50, scale: int = 4, levels: float = 255.0
) -> RFDN:
    """433,448 parameters by default; `levels` is the white of the values that its weights were trained on."""
    return RFDN(in_channels=in_channels, out_channels=num_classes, channels=channels, scale=scale, levels=levels)
