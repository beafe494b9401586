"""ONNX operators in torch, batch-wise and differentiable: what a graph needs to be trained. Imported where torch is.

Each row of `OPERATORS` takes a `Node` and returns a function of the node's tensors. Only what our exporter writes, and
what common image models hold, is here; `exporters.torch_graph` refuses the rest by name. Sizes of the batch that a
static graph has written down are taken as "however many there are".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from exporters.artifact import ExportError

Function = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node: its attributes, the constants among its inputs (None elsewhere), and the graph's static batch."""

    name: str
    operator: str
    attributes: dict[str, Any]
    constants: tuple[np.ndarray | None, ...]
    batch: int
    outputs: int = 1

    def refuse(self, what: str) -> ExportError:
        return ExportError(f"{self.operator} node {self.name!r}: {what}; it cannot be trained, leave the rung qat out")

    def constant(self, place: int, default: Any = None) -> Any:
        """The constant at an input, as a list of Python numbers; `default` where there is no such input."""
        if place >= len(self.constants) or (self.constants[place] is None and default is not None):
            return default
        found = self.constants[place]
        if found is None:
            raise self.refuse(f"its input {place} is not a constant")
        return found.tolist()

    def get(self, key: str, default: Any) -> Any:
        return self.attributes.get(key, default)


def _pads(node: Node, spatial: int) -> tuple[list[int], list[int]]:
    """(padding that torch takes itself, padding to be put around before: torch's order); one of them is zero."""
    if node.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", "NOTSET", "VALID"):
        raise node.refuse("its padding is not written out")
    pads = node.get("pads", [0] * 2 * spatial)
    begin, end = pads[:spatial], pads[spatial:]
    if begin == end:
        return list(begin), []
    around = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return [0] * spatial, around


def _convolution(node: Node) -> Function:
    spatial = len(node.get("kernel_shape", [0, 0]))
    transposed = node.operator == "ConvTranspose"
    padding, around = _pads(node, spatial)
    options: dict[str, Any] = {
        "stride": node.get("strides", [1] * spatial),
        "padding": padding,
        "dilation": node.get("dilations", [1] * spatial),
        "groups": node.get("group", 1),
    }
    if transposed:
        if around or "output_shape" in node.attributes:
            raise node.refuse("its padding is uneven")
        options["output_padding"] = node.get("output_padding", [0] * spatial)
    if spatial not in (1, 2):
        raise node.refuse(f"it has {spatial} spatial axes")
    names = ("conv_transpose1d", "conv_transpose2d") if transposed else ("conv1d", "conv2d")
    convolve = getattr(F, names[spatial - 1])

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return convolve(F.pad(x, around) if around else x, weight, bias, **options)

    return run


def _gemm(node: Node) -> Function:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    first, second = node.get("transA", 0), node.get("transB", 0)
    if first:
        raise node.refuse("it transposes the batch")

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if alpha == beta == 1 and bias is not None and bias.ndim == 1:
            return F.linear(x, weight if second else weight.t(), bias)
        found = alpha * (x @ (weight.t() if second else weight))
        return found if bias is None else found + beta * bias

    return run


def _pool(node: Node) -> Function:
    spatial = len(node.get("kernel_shape", [1, 1]))
    padding, around = _pads(node, spatial)
    if spatial != 2 or around or node.outputs != 1:
        raise node.refuse("only even pooling over two axes with one output is known")
    options: dict[str, Any] = {
        "kernel_size": node.get("kernel_shape", [1, 1]),
        "stride": node.get("strides", [1] * spatial),
        "padding": padding,
        "ceil_mode": bool(node.get("ceil_mode", 0)),
    }
    if node.operator == "MaxPool":
        return functools.partial(F.max_pool2d, dilation=node.get("dilations", [1] * spatial), **options)
    return functools.partial(F.avg_pool2d, count_include_pad=bool(node.get("count_include_pad", 0)), **options)


def _reduce_mean(node: Node) -> Function:
    axes = node.get("axes", None) or node.constant(1)
    keep = bool(node.get("keepdims", 1))
    return lambda x, *_: x.mean(dim=axes, keepdim=keep)


def _reshape(node: Node) -> Function:
    shape = node.constant(1)

    def run(x: torch.Tensor, *_: Any) -> torch.Tensor:
        wanted = [
            x.shape[axis] if size == 0 and not node.get("allowzero", 0) else size for axis, size in enumerate(shape)
        ]
        if wanted and wanted[0] == node.batch:
            wanted[0] = len(x)
        return x.reshape(wanted)

    return run


def _clip(node: Node) -> Function:
    low, high = node.constant(1, node.get("min", -np.inf)), node.constant(2, node.get("max", np.inf))
    return lambda x, *_: x.clamp(low, high)


def _unsqueeze(node: Node) -> Function:
    axes = sorted(node.get("axes", None) or node.constant(1))
    return lambda x, *_: functools.reduce(lambda held, axis: held.unsqueeze(axis), axes, x)


def _squeeze(node: Node) -> Function:
    axes = sorted(node.get("axes", None) or node.constant(1), reverse=True)
    return lambda x, *_: functools.reduce(lambda held, axis: held.squeeze(axis), axes, x)


def _resize(node: Node) -> Function:
    mode = node.get("mode", b"nearest").decode()
    if mode not in ("nearest", "linear") or len(node.constants) < 3 or node.constants[2] is None:
        raise node.refuse(f"resizing by {mode} is not known")
    scales = [float(scale) for scale in node.constants[2].tolist()][2:]
    if mode == "nearest":
        return lambda x, *_: F.interpolate(x, scale_factor=scales, mode="nearest")
    align = node.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    return lambda x, *_: F.interpolate(x, scale_factor=scales, mode="bilinear", align_corners=align)


def _depth_to_space(node: Node) -> Function:
    size = node.get("blocksize", 1)
    if node.get("mode", b"DCR") == b"CRD":
        return lambda x: F.pixel_shuffle(x, size)

    def run(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return blocks.reshape(n, c // size**2, h * size, w * size)

    return run


def _pad(node: Node) -> Function:
    pads = node.constant(1)
    half = len(pads) // 2
    around = [side for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])]
    mode = node.get("mode", b"constant").decode()
    value = node.constant(2, 0.0) if mode == "constant" and len(node.constants) > 2 else 0.0
    if mode == "constant":
        return lambda x, *_: F.pad(x, around, value=value)
    if mode not in ("reflect", "edge") or any(around[4:]):
        raise node.refuse(f"padding by {mode} over these axes is not known")
    return lambda x, *_: F.pad(x, around[:4], mode="replicate" if mode == "edge" else "reflect")


def _batch_norm(node: Node) -> Function:
    epsilon = node.get("epsilon", 1e-5)

    def run(x: torch.Tensor, scale: Any, bias: Any, mean: Any, variance: Any) -> torch.Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)

    return run


def _layer_norm(node: Node) -> Function:
    axis, epsilon = node.get("axis", -1), node.get("epsilon", 1e-5)
    return lambda x, scale, bias=None: F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _slice(node: Node) -> Function:
    starts, ends = node.constant(1), node.constant(2)
    axes, steps = node.constant(3, list(range(len(starts)))), node.constant(4, [1] * len(starts))
    if any(step < 1 for step in steps):
        raise node.refuse("it goes backwards")

    def run(x: torch.Tensor, *_: Any) -> torch.Tensor:
        places = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            places[axis] = slice(start, min(end, x.shape[axis]), step)
        return x[tuple(places)]

    return run


def _split(node: Node) -> Function:
    axis = node.get("axis", 0)
    sizes = node.constant(1, []) or node.get("split", [])
    return lambda x, *_: x.split(sizes, axis) if sizes else x.chunk(node.outputs, axis)


def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid
    return lambda x: (alpha * x + beta).clamp(0, 1)


def _global_pool(node: Node) -> Function:
    return lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _flatten(node: Node) -> Function:
    axis = node.get("axis", 1)
    if axis != 1:
        raise node.refuse(f"it flattens from axis {axis}")
    return lambda x: x.flatten(1)


def _plain(function: Function) -> Callable[[Node], Function]:
    return lambda node: function


OPERATORS: dict[str, Callable[[Node], Function]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "Gemm": _gemm,
    "MatMul": _plain(torch.matmul),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(torch.div),
    "Pow": _plain(torch.pow),
    "Sqrt": _plain(torch.sqrt),
    "Erf": _plain(torch.erf),
    "Tanh": _plain(torch.tanh),
    "Relu": _plain(torch.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "HardSwish": _plain(F.hardswish),
    "HardSigmoid": _hard_sigmoid,
    "Softplus": _plain(F.softplus),
    "Mish": _plain(F.mish),
    "PRelu": _plain(lambda x, slope: torch.where(x >= 0, x, slope * x)),
    "LeakyRelu": lambda node: functools.partial(F.leaky_relu, negative_slope=node.get("alpha", 0.01)),
    "Elu": lambda node: functools.partial(F.elu, alpha=node.get("alpha", 1.0)),
    "Gelu": lambda node: functools.partial(F.gelu, approximate=node.get("approximate", b"none").decode()),
    "Softmax": lambda node: functools.partial(torch.softmax, dim=node.get("axis", -1)),
    "Clip": _clip,
    "GlobalAveragePool": _global_pool,
    "ReduceMean": _reduce_mean,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": lambda node: lambda x: x.permute(node.get("perm", list(reversed(range(x.ndim))))),
    "Concat": lambda node: lambda *parts: torch.cat(parts, dim=node.get("axis", 1)),
    "Pad": _pad,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "Slice": _slice,
    "Split": _split,
    "Identity": _plain(lambda x: x),
}
