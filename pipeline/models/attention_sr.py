"""The super-resolution student: twelve blocks of pixel attention and a pixel shuffle, 80,784 parameters at x4.

Paper 003's AttentionStudentSRNet is described as "12 attention blocks, reduced channels" and nothing more, so this one
is ours, made for int8 and for tiles:

- A block is `x + y * sigmoid(gate(y))` with `y = conv3x3(relu(x))`: pixel attention (Zhao et al., "Efficient Image
  Super-Resolution Using Pixel Attention", arXiv 2010.01073) of every channel at every place. There is no global
  pooling, whose mean would depend on the tile, and no normalisation layer; each output sees 29 x 29 input pixels.
- What is added to the output is the input, enlarged bilinearly in float (ABPN, Du et al., arXiv 2105.09750, repeats it
  by nearest neighbour): the quantized layers give only the detail, so that their error is a share of the detail.
- Every operation is one that ONNX opset 18, ONNX Runtime, OpenVINO and TensorRT have: convolutions of stride 1, ReLU,
  sigmoid, product, sum, depth-to-space, resize. Widths are multiples of 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import UserError

SMALL = 0.1  # of the usual first weights of the last layer: training begins near the enlarged input


class AttentionBlock(nn.Module):
    """(N, C, H, W) -> the same: a convolution whose result is let through as far as it says itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(F.relu(x))
        return x + y * torch.sigmoid(self.gate(y))


class AttentionSR(nn.Module):
    """(N, in_channels, H, W) float in [0, 1] -> (N, in_channels, scale * H, scale * W), not clipped."""

    def __init__(self, *, in_channels: int, channels: int, blocks: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(AttentionBlock(channels) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels, in_channels * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        with torch.no_grad():
            for parameter in self.tail.parameters():
                parameter.mul_(SMALL)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shallow = self.head(x)
        detail = self.shuffle(self.tail(self.blocks(shallow) + shallow))
        return detail + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)


def attention_sr(
    num_classes: int = 3, in_channels: int = 3, *, channels: int = 24, blocks: int = 12, scale: int = 4
) -> AttentionSR:
    """80,784 parameters by default. Raises `UserError` when it is asked to change the number of channels."""
    if num_classes != in_channels:
        raise UserError(f"model 'attention-sr' adds to its input: {in_channels} channels cannot become {num_classes}")
    return AttentionSR(in_channels=in_channels, channels=channels, blocks=blocks, scale=scale)
