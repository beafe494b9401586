"""MobileNets for 32x32 images: the ImageNet nets with their first strides taken out.

`mobilenetv2-cifar` (Sandler et al. 2018, arXiv:1801.04381) is torchvision's class, and so are its names; its stem and
its stage of 24 channels have stride 1, as in the public CIFAR version whose teachers paper 004 took.
`mobilenetv3-small-cifar` (Howard et al. 2019, arXiv:1905.02244) is not torchvision's net: the published 1.61 M
parameters belong to one with stride 1 in the stem and the first block, squeeze-and-excitation of two linear layers
without bias that squeeze to exactly a quarter and stand before the activation, and a last 1x1 convolution without bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# expansion, channels, blocks, stride: the paper's table with the second stride 1
V2_STAGES = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
# kernel, expanded channels, channels, squeeze-and-excitation, hard swish (else ReLU), stride
V3_BLOCKS = (
    (3, 16, 16, True, False, 1),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
V3_STEM, V3_LAST, V3_HEAD = 16, 576, 1024


def mobilenetv2_cifar(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> nn.Module:
    """1.48 M parameters and 59.4 M MACs at width 0.75 and 100 classes. Channels are rounded to multiples of 8."""
    from pipeline.models.torchvision_models import RGB, replace_first_convolution, torchvision_classifiers

    module = torchvision_classifiers("mobilenetv2-cifar").MobileNetV2(
        num_classes=num_classes, width_mult=width, inverted_residual_setting=V2_STAGES
    )
    module.features[0][0].stride = (1, 1)
    if in_channels != RGB:
        replace_first_convolution(module, "mobilenetv2-cifar", in_channels)
    return module


class SqueezeExcitation(nn.Module):
    """Each channel times a gate in [0, 1] that is computed from the mean of all: (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 4, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 4, channels, bias=False),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))[:, :, None, None]


class InvertedResidual(nn.Module):
    """1x1 to the expanded channels, depthwise, squeeze-and-excitation, 1x1 back; a residual sum where shapes agree."""

    def __init__(
        self, in_channels: int, kernel: int, expanded: int, channels: int, squeeze: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == channels
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers += [nn.Conv2d(in_channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), _activation(swish)]
        layers += [
            nn.Conv2d(expanded, expanded, kernel, stride, kernel // 2, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
        ]
        if squeeze:
            layers.append(SqueezeExcitation(expanded))
        layers += [_activation(swish), nn.Conv2d(expanded, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class CifarMobileNetV3(nn.Module):
    """(N, in_channels, H, W) float, normalised -> logits (N, num_classes)."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        stem = [nn.Conv2d(in_channels, V3_STEM, 3, padding=1, bias=False), nn.BatchNorm2d(V3_STEM), _activation(True)]
        features: list[nn.Module] = [nn.Sequential(*stem)]
        before = V3_STEM
        for kernel, expanded, channels, squeeze, swish, stride in V3_BLOCKS:
            features.append(InvertedResidual(before, kernel, expanded, channels, squeeze, swish, stride))
            before = channels
        last = [nn.Conv2d(before, V3_LAST, 1, bias=False), nn.BatchNorm2d(V3_LAST), _activation(True)]
        self.features = nn.Sequential(*features, nn.Sequential(*last))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(V3_LAST, V3_HEAD, 1, bias=False), _activation(True)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(V3_HEAD, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.head(self.features(x)).flatten(1))


def _activation(swish: bool) -> nn.Module:
    return nn.Hardswish() if swish else nn.ReLU()


def mobilenetv3_small_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarMobileNetV3:
    """1.61 M parameters and 17.6 M MACs at 100 classes: the student of paper 004."""
    return CifarMobileNetV3(num_classes=num_classes, in_channels=in_channels)
