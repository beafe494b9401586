"""ResNets for small images (32x32 and thereabouts).

`cifar-resnet20/32/44/56`: He et al. 2016 (arXiv:1512.03385), section 4.2: 16, 32 and 64 channels, n blocks a stage.
`cifar-resnet18/34/101`: the ImageNet nets' stages (64 to 512 channels, bottlenecks in the last) behind a 3x3 stem
without pooling.
Parameter names are those of two common public implementations (kuangliu/pytorch-cifar and
akamaster/pytorch_resnet_cifar10), so that their published weights load; those of a third
(chenyaofo/pytorch-cifar-models) are known by `OTHER_NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

Shortcut = Literal["A", "B"]
EXPANSION = 4


class PaddedShortcut(nn.Module):
    """Option A of the paper: every second pixel, new channels zero, split evenly before and after; no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        more = channels - in_channels
        assert more >= 0, f"{in_channels} -> {channels}"
        self.pad = (more // 2, more - more // 2)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual sum: (N, in, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != channels:
            if shortcut == "A":
                self.shortcut = PaddedShortcut(in_channels, channels, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 to 4 x `channels`, and a residual sum whose shortcut is a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        after = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """(N, in_channels, H, W) float, normalised -> logits (N, num_classes).

    blocks: blocks of each stage; channels: of each stage, before a bottleneck's expansion; every stage but the first
    halves height and width. shortcut: of basic blocks; None makes bottlenecks.
    """

    # Parts of parameter names in other public implementations -> ours; `load_weights` reads this.
    OTHER_NAMES: ClassVar[Mapping[str, str]] = {"downsample": "shortcut", "fc": "linear"}

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        in_channels: int,
        shortcut: Shortcut | None,
    ) -> None:
        super().__init__()
        assert len(blocks) == len(channels), f"{blocks} {channels}"
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        before = channels[0]
        stages = []
        for index, (count, after) in enumerate(zip(blocks, channels, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            stage = []
            for stride in strides:
                if shortcut is None:
                    stage.append(Bottleneck(before, after, stride))
                    before = EXPANSION * after
                else:
                    stage.append(BasicBlock(before, after, stride, shortcut))
                    before = after
            stages.append(f"layer{index + 1}")
            self.add_module(stages[-1], nn.Sequential(*stage))
        self._stages = tuple(stages)
        self.linear = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _narrow(n: int, num_classes: int, in_channels: int, width: float, shortcut: Shortcut) -> CifarResNet:
    channels = _scaled((16, 32, 64), width)
    return CifarResNet(
        blocks=(n, n, n), channels=channels, num_classes=num_classes, in_channels=in_channels, shortcut=shortcut
    )


def _wide(
    blocks: Sequence[int], num_classes: int, in_channels: int, width: float, shortcut: Shortcut | None = "B"
) -> CifarResNet:
    channels = _scaled((64, 128, 256, 512), width)
    return CifarResNet(
        blocks=blocks, channels=channels, num_classes=num_classes, in_channels=in_channels, shortcut=shortcut
    )


def _scaled(channels: Sequence[int], width: float) -> tuple[int, ...]:
    return tuple(max(1, round(count * width)) for count in channels)


def cifar_resnet20(
    num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0, shortcut: Shortcut = "B"
) -> CifarResNet:
    """ResNet-20 (n = 3); with shortcut A the paper's 0.27 M parameters. width multiplies the channels of each stage."""
    return _narrow(3, num_classes, in_channels, width, shortcut)


def cifar_resnet32(
    num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0, shortcut: Shortcut = "B"
) -> CifarResNet:
    """ResNet-32 (n = 5); as `cifar_resnet20`."""
    return _narrow(5, num_classes, in_channels, width, shortcut)


def cifar_resnet44(
    num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0, shortcut: Shortcut = "B"
) -> CifarResNet:
    """ResNet-44 (n = 7); as `cifar_resnet20`."""
    return _narrow(7, num_classes, in_channels, width, shortcut)


def cifar_resnet56(
    num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0, shortcut: Shortcut = "B"
) -> CifarResNet:
    """ResNet-56 (n = 9); as `cifar_resnet20`. With shortcut A 0.85 M parameters, 93.0 % on CIFAR-10 in the paper."""
    return _narrow(9, num_classes, in_channels, width, shortcut)


def cifar_resnet18(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> CifarResNet:
    """ResNet-18 with a 3x3 stem: 11.2 M parameters at width 1, about a quarter of them at width 0.5."""
    return _wide((2, 2, 2, 2), num_classes, in_channels, width)


def cifar_resnet34(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> CifarResNet:
    """ResNet-34 with a 3x3 stem: 21.3 M parameters at width 1."""
    return _wide((3, 4, 6, 3), num_classes, in_channels, width)


def cifar_resnet101(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> CifarResNet:
    """ResNet-101 with a 3x3 stem: bottlenecks, 42.7 M parameters at width 1 and 100 classes (paper 003's teacher)."""
    return _wide((3, 4, 23, 3), num_classes, in_channels, width, shortcut=None)
