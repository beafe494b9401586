"""DenseNet-121 (Huang et al. 2017, arXiv:1608.06993) as paper 001 trained it on CIFAR-10: with the ImageNet stem.

The published counts leave no doubt: the stem is 7x7 (3x3 would have 7,680 weights fewer), so 32x32 images are 8x8 when
they reach the first dense block. `width` scales growth rate and stem; names are torchvision's, whose class this is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

BLOCKS = (6, 12, 24, 16)
GROWTH, STEM = 32, 64


def densenet121_cifar(num_classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> nn.Module:
    """6.88 M weights of convolutions and linear layers at 10 classes, 1.73 M at width 0.5. Images: 29x29 or larger."""
    from pipeline.models.torchvision_models import RGB, replace_first_convolution, torchvision_classifiers

    growth, stem = round(GROWTH * width), round(STEM * width)
    if growth < 1:
        raise UserError(f"model 'densenet121-cifar': width = {width:g} leaves no channel; give 0.03 or more")
    densenet = torchvision_classifiers("densenet121-cifar").DenseNet
    module = densenet(growth_rate=growth, block_config=BLOCKS, num_init_features=stem, num_classes=num_classes)
    if in_channels != RGB:
        replace_first_convolution(module, "densenet121-cifar", in_channels)
    return module
