"""Which layers fp16 cannot hold, measured: every value that passes on real samples is rounded to half and back.

A layer stays in fp32 when one of its inputs, outputs or weights has a number beyond 65504, when most of a tensor lies
below what fp16 resolves (the rounding error stands less than `LEAST_DB` under the values; in the middle of fp16's range
it is 70 dB and more), or when a sum inside it passes 65504 before it is divided: means and pools, norms, and the
normalizations, whose squares grow fastest. Convolutions and matrix products add up in fp32 in every runtime that is
served here, so their products are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.artifact import ExportError, IOSpec
from exporters.calibration_samples import CalibrationSamples
from exporters.half_graph import FP16_MAX, element_types, single_inputs
from exporters.onnx_file import WEIGHTED_OPS
from exporters.opset import opset_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# 40 dB is a hundredth: below it the rounding of one tensor costs more than int8 quantization does (about 35 to 40 dB).
LEAST_DB = 40.0
_SUMS = ("ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool", "ReduceL1")
_SQUARES = ("ReduceL2", "ReduceSumSquare", "LpPool")
_NORMALIZERS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")
_ADDING = ("Add", "Sub", "Sum")
_SAMPLE = 1 << 22  # elements of a tensor that are looked at in one piece, so that no copy grows with the image


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A node that stays in fp32: `reason` says which of its tensors, and the value measured there."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.reason}"


@dataclass(kw_only=True)
class _Seen:
    """What passed through one tensor so far: the largest magnitude, and the energies of values and rounding error."""

    peak: float = 0.0
    energy: float = 0.0
    error: float = 0.0

    def add(self, values: np.ndarray) -> None:
        flat = values.reshape(-1)
        for start in range(0, flat.size, _SAMPLE):
            part = flat[start : start + _SAMPLE].astype(np.float64)
            peak = float(np.abs(part).max(initial=0.0))
            self.peak = max(self.peak, peak)
            if peak <= FP16_MAX:  # beyond it the error is infinite, and the peak says so already
                self.energy += float(part @ part)
                self.error += float(((part - part.astype(np.float16)) ** 2).sum())

    def fault(self, *, added: bool = False) -> str | None:
        """What fp16 does to these values; `added` ones are lost in a sum where they are small, and that is right."""
        if self.peak > FP16_MAX:
            return f"reaches {self.peak:.4g}, beyond fp16's {FP16_MAX:g}"
        if not added and self.error > self.energy * 10 ** (-LEAST_DB / 10):
            left = 10 * math.log10(self.energy / self.error)
            return f"stays below {self.peak:.2g}, where fp16 leaves {left:.0f} dB"
        return None


def unfit_nodes(
    model: ModelProto, batches: Iterable[np.ndarray], *, spec: IOSpec, where: str
) -> tuple[tuple[Kept, ...], CalibrationSamples]:
    """The nodes of the main graph, all named, that must stay in fp32, in order of computation; and the samples read.

    `batches` yields float32 arrays of the model's one input `spec`; they are read once, one at a time, and memory is
    bounded by the model and the activations of one batch. Values that are not finite in fp32 are an `ExportError`.
    """
    from exporters.calibrate import explained, open_session

    kinds = element_types(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    candidates = [node for node in model.graph.node if single_inputs(node, opset_of(model)) is not None]
    read = dict.fromkeys(name for node in candidates for name in (*node.input, *node.output) if kinds.get(name) == 1)
    seen = {name: _Seen() for name in read}
    for tensor in model.graph.initializer:
        if tensor.name in seen:
            seen[tensor.name].add(_finite(tensor))
    given = spec.name
    made = [name for name in read if name not in weights and name != given]
    sums: dict[str, float] = {}
    session = open_session(model, made, where=where)
    samples = CalibrationSamples(batches, spec, where=where)
    for feeds in samples:
        with explained(where):
            found: dict[str, Any] = dict(zip(made, session.run(made, feeds), strict=True)) | dict(feeds)
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise ExportError(f"{where}: {name} holds NaN or infinity on calibration samples; mend the model")
            if name in seen:
                seen[name].add(values)
        for node in candidates:
            if (
                node.op_type in (*_SUMS, *_SQUARES, *_NORMALIZERS)
                and node.input[0] in found
                and node.output[0] in found
            ):
                largest = largest_sum(node, found[node.input[0]], found[node.output[0]])
                sums[node.name] = max(sums.get(node.name, 0.0), largest)
    samples.check()
    return tuple(kept for node in candidates if (kept := _kept(node, seen, sums, weights))), samples


def _kept(node: NodeProto, seen: Mapping[str, _Seen], sums: Mapping[str, float], weights: set[str]) -> Kept | None:
    for role, names in (("input", node.input), ("output", node.output)):
        for place, name in enumerate(names):
            added = role == "input" and (node.op_type in _ADDING or (node.op_type in WEIGHTED_OPS and place == 2))
            if name in seen and (fault := seen[name].fault(added=added)):
                what = "weight" if name in weights else role
                return Kept(node=node.name, operator=node.op_type, reason=f"{what} {name!r} {fault}")
    if sums.get(node.name, 0.0) > FP16_MAX:
        reason = f"sums up to {sums[node.name]:.4g}, beyond fp16's {FP16_MAX:g}"
        return Kept(node=node.name, operator=node.op_type, reason=reason)
    return None


def largest_sum(node: NodeProto, values: np.ndarray, result: np.ndarray) -> float:
    """The largest sum of values, or of squares, inside a node that reduces `values` to `result`."""
    wide = values.astype(np.float64)
    if node.op_type in _SUMS:
        # What was averaged is the result times how many values went into each of its elements.
        count = _window(node) or values.size / max(result.size, 1)
        scale = 1.0 if node.op_type in ("ReduceSum", "ReduceL1") else count
        return float(np.abs(result.astype(np.float64)).max(initial=0.0)) * scale
    if node.op_type in _SQUARES:
        peak = float(np.abs(result.astype(np.float64)).max(initial=0.0))
        return peak if node.op_type == "ReduceSumSquare" else peak**2
    rows = wide.reshape(len(wide), -1)
    if node.op_type == "LayerNormalization":
        axis = next((item.i for item in node.attribute if item.name == "axis"), -1) % values.ndim
        rows = wide.reshape(math.prod(values.shape[:axis]), -1)
    elif node.op_type == "InstanceNormalization":
        rows = wide.reshape(math.prod(values.shape[:2]), -1)
    elif node.op_type == "GroupNormalization":
        groups = next((item.i for item in node.attribute if item.name == "num_groups"), 1)
        rows = wide.reshape(len(wide) * groups, -1)
    return float((rows**2).sum(axis=1).max(initial=0.0))


def _window(node: NodeProto) -> int:
    """How many values an AveragePool averages; 0 for what has no window."""
    return math.prod(next((list(item.ints) for item in node.attribute if item.name == "kernel_shape"), [0]))


def _finite(tensor: Any) -> np.ndarray:
    """A weight without its infinities, which are meant (a mask)."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    return values[np.isfinite(values)]
