"""Fake quantization: float tensors on the grid of an int8 one, with gradients. Imported only where torch is.

    level = clamp(round(x / scale) + zero, low, high),    x' = (level - zero) * scale

Rounding lets gradients through where x lies inside the grid (the straight-through estimator, Bengio et al. 2013). The
scale of an activation is learned, as in LSQ (Esser et al. 2020, arXiv:1902.08153, equations 2 and 3):

    d x' / d scale = round(x / scale) - x / scale   inside,    low - zero or high - zero   outside

its gradient divided by sqrt(values a sample * high). What is trained is the logarithm (as in TQT, Jain et al. 2019,
arXiv:1903.08066), so that the scale stays positive; its gradient is that over the scale, which gives LSQ's relative
step, and at most 1 in magnitude, so that no step changes a scale by more than the rate. Weights take the scale of their
largest magnitude a channel, so that none is ever cut off. Zero points stay as calibration found them. `fp16`: scales
are rounded up to numbers of fp16, as `exporters.int8_forms` rounds them, for files that hold them in that type.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from exporters.half_graph import FP16_TINY


class _Levels(torch.autograd.Function):
    """x on its grid; gradients for x and for the scale, which is a tensor without axes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: int, low: int, high: int) -> torch.Tensor:
        found = torch.fake_quantize_per_tensor_affine(
            x, scale, torch.tensor(zero, dtype=torch.int32, device=x.device), low, high
        )
        ctx.save_for_backward(x, scale, found)
        ctx.low, ctx.high = low - zero, high - zero
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        x, scale, found = ctx.saved_tensors
        inside = (x >= (ctx.low - 0.5) * scale) & (x <= (ctx.high + 0.5) * scale)
        passed = gradient * inside
        # (found - x) / scale is round(x / scale) - x / scale inside; outside, found / scale is the end of the grid.
        of_scale = ((gradient * found).sum() - (passed * x).sum()) / scale
        share = 1 / math.sqrt(x[0].numel() * max(ctx.high, 1))
        # What is trained is log(scale), whose chain rule multiplies by the scale once more.
        return passed, (of_scale * share / scale).clamp(-1, 1) / scale, None, None, None


class ActivationGrid(nn.Module):
    """The grid of one tensor between layers: `zero` and the limits are whole numbers, the scale is learned."""

    def __init__(self, scale: float, zero: int, low: int, high: int, *, fp16: bool = False) -> None:
        super().__init__()
        assert scale > 0 and low <= zero <= high, (scale, zero, low, high)
        self.fp16 = fp16
        self.logarithm = nn.Parameter(torch.tensor(math.log(scale), dtype=torch.float32))
        self.zero, self.low, self.high = zero, low, high

    @property
    def scale(self) -> torch.Tensor:
        """float32, without axes: the very value that is exported. Rounding lets the gradient through."""
        exact = self.logarithm.exp()
        return half_up(exact.detach()) + (exact - exact.detach()) if self.fp16 else exact

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Levels.apply(x.float(), self.scale, self.zero, self.low, self.high)  # type: ignore[no-any-return]

    @torch.no_grad()
    def levels(self, x: torch.Tensor) -> torch.Tensor:
        """int32: the whole numbers of values that lie on the grid already."""
        return (torch.round(x / self.scale) + self.zero).to(torch.int32)


class WeightGrid(nn.Module):
    """A weight on the symmetric grid -limit .. limit, a scale for each channel along `axis`.

    `floor` (channels,): the least scale a channel may have, so that an int32 bias in units of input scale times weight
    scale does not overflow where a channel's weights are all but zero.
    """

    floor: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        *,
        axis: int,
        limit: int,
        floor: torch.Tensor | None = None,
        fp16: bool = False,
    ) -> None:
        super().__init__()
        self.fp16 = fp16
        self.weight = nn.Parameter(weight.clone())
        self.axis, self.limit = axis % weight.ndim, limit
        least = torch.zeros(weight.shape[self.axis]) if floor is None else floor.float()
        self.register_buffer("floor", least)

    @property
    @torch.no_grad()
    def scales(self) -> torch.Tensor:
        """float32 (channels,); 1 for a channel that is zero."""
        other = [axis for axis in range(self.weight.ndim) if axis != self.axis]
        largest = self.weight.detach().abs().amax(dim=other) / self.limit
        found = torch.maximum(largest, self.floor)
        found = half_up(found) if self.fp16 else found
        return torch.where(found > 0, found, torch.ones_like(found))

    def forward(self) -> torch.Tensor:
        scales = self.scales
        zeros = torch.zeros(len(scales), dtype=torch.int32, device=scales.device)
        return torch.fake_quantize_per_channel_affine(self.weight, scales, zeros, self.axis, -self.limit, self.limit)

    @torch.no_grad()
    def levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 levels of the weight's shape, and float32 scales (channels,)."""
        scales = self.scales
        shape = [-1 if axis == self.axis else 1 for axis in range(self.weight.ndim)]
        found = torch.round(self.forward() / scales.reshape(shape))
        return found.to(torch.int8), scales


def half_up(scales: torch.Tensor) -> torch.Tensor:
    """float32 scales, none negative, at the next number of fp16 that is not smaller, as float32. Zero stays, and so do
    those beyond fp16, whose layers are in fp32 in the file as well."""
    near = scales.clamp(min=FP16_TINY).half()
    above = (near.view(torch.int16) + 1).view(torch.float16)  # the bits of positive floats are in their order
    found = torch.where(near.float() < scales, above, near).float()
    return torch.where((scales > 0) & found.isfinite(), found, scales)
