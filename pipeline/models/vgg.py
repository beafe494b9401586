"""VGG with batch norm for 32x32 images (Simonyan & Zisserman 2014, arXiv:1409.1556; configurations A, B, D and E).

Convolutions have a bias and a batch norm, five poolings take 32x32 to one pixel, and the head is three linear layers of
512 with dropout between. `vgg16-cifar?width=0.5` is paper 001's half-width student: every width halved, the head's too.
Parameter names are torchvision's, so that the published CIFAR weights of that layout load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# Channels of the 3x3 convolutions, a stage in each group; a 2x2 pooling ends each.
STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class CifarVgg(nn.Module):
    """(N, in_channels, H, W) float, normalised, H and W at least 32 -> logits (N, num_classes).

    Larger images than 63 pixels are averaged to one pixel before the head.
    """

    def __init__(self, *, depth: int, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for stage in STAGES[depth]:
            for channels in stage:
                after = max(1, round(channels * width))
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = max(1, round(512 * width))
        self.classifier = nn.Sequential(
            nn.Linear(before, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def vgg11_bn_cifar(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> CifarVgg:
    """VGG-11 (A): 9.80 M parameters and 153.3 M MACs at 100 classes, a teacher of paper 004."""
    return CifarVgg(depth=11, num_classes=num_classes, in_channels=in_channels, width=width)


def vgg13_bn_cifar(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> CifarVgg:
    """VGG-13 (B): 9.99 M parameters at 100 classes."""
    return CifarVgg(depth=13, num_classes=num_classes, in_channels=in_channels, width=width)


def vgg16_cifar(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> CifarVgg:
    """VGG-16 (D): 15.24 M weights of convolutions and linear layers at 10 classes, 3.81 M at width 0.5 (paper 001)."""
    return CifarVgg(depth=16, num_classes=num_classes, in_channels=in_channels, width=width)


def vgg19_bn_cifar(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> CifarVgg:
    """VGG-19 (E): 20.6 M parameters at 100 classes."""
    return CifarVgg(depth=19, num_classes=num_classes, in_channels=in_channels, width=width)
