"""A Q/DQ graph as a torch module that can be trained: fake quantization exactly where the file has Q/DQ.

The module computes what the ONNX file computes, node by node, with the float weights of the fp32 graph on the grids of
the quantized one. So its exported form has, by construction, the same operators, the same Q/DQ places (residual adds
included) and the same folded BatchNorms; only weights, biases and scales change. BatchNorms that stand alone keep their
statistics. Imported only where torch is; every node must be in `exporters.torch_operators`, or is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from exporters.artifact import ExportError
from exporters.fake_quant import ActivationGrid, WeightGrid
from exporters.onnx_file import WEIGHTED_OPS, io_specs
from exporters.torch_operators import OPERATORS, Node

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

QUANTIZED = "_quantized"  # onnxruntime's ending for the int8 form of an initializer
_LEARNED = {**dict.fromkeys(WEIGHTED_OPS, (1, 2)), "BatchNormalization": (1, 2), "LayerNormalization": (1, 2)}
_BIAS_STEPS = 2.0**30  # an int32 bias may take half of its range when training begins


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node to compute: `run` takes the tensors `reads` ("" for none); those in `last` are not needed after it."""

    run: Callable[..., Any]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    last: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a trained value goes back to: initializers of the quantized graph. For a weight `values` are its levels;
    for a float or int32 bias `scale` is "" or the initializer of its scale, whose factors are `of`."""

    values: str
    scale: str = ""
    of: tuple[str, str] = ("", "")


class TrainableGraph(nn.Module):
    """(N, C, H, W) float, preprocessed -> the graph's first output; any N.

    quantized: the graph with Q/DQ, before anything is done to keep runtimes from fusing. floats: the float initializers
    that its int8 weights and int32 biases were made of. limit: the largest level of a weight. fp16: scales are numbers
    of fp16.
    taps: module path -> the tensor whose value a loss looks for under that path.
    """

    def __init__(
        self,
        quantized: ModelProto,
        floats: Mapping[str, np.ndarray],
        *,
        limit: int = 127,
        fp16: bool = False,
        taps: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.fp16 = fp16
        graph = quantized.graph
        inputs, outputs = io_specs(quantized)
        self.entry, self.exit = inputs[0].name, outputs[0].name
        size = inputs[0].shape[0]
        self.batch = size if isinstance(size, int) else 1
        self.arrays = _constants(quantized)
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.makers = {name: node for node in graph.node for name in node.output}
        self.grids, self.weights = nn.ModuleList(), nn.ModuleList()
        self.vectors, self.kept = nn.ParameterList(), nn.ParameterList()
        self.grid_of: dict[str, ActivationGrid] = {}  # scale initializer -> its grid
        self.weight_of: dict[str, WeightGrid] = {}  # tensor of the graph -> its weight
        self.vector_of: dict[str, nn.Parameter] = {}
        self.constant_of: dict[str, int] = {}
        self.places: dict[str, Place] = {}
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                self._activation(node)
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.arrays:
                self._constant(node, floats, limit)
        steps = [self._step(node) for node in graph.node if not self._is_constant(node)]
        self.steps = tuple(_with_last(steps, {self.exit, *(taps or {}).values()}))
        self.tapped: dict[str, list[str]] = {}
        for path, tensor in (taps or {}).items():
            _add_identity(self, path)
            self.tapped.setdefault(tensor, []).append(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values: dict[str, Any] = {self.entry: x}
        values |= {name: grid() for name, grid in self.weight_of.items()}
        values |= self.vector_of
        values |= {name: self.kept[place] for name, place in self.constant_of.items()}
        for step in self.steps:
            found = step.run(*(values[name] if name else None for name in step.reads))
            for name, value in zip(step.makes, found if len(step.makes) > 1 else (found,), strict=True):
                values[name] = value
                for path in self.tapped.get(name, ()):
                    values[name] = self.get_submodule(path)(value)
            for name in step.last:
                del values[name]
        return values[self.exit]

    def _activation(self, node: NodeProto) -> None:
        scale, zero = (self.arrays[name] for name in node.input[1:3])
        if scale.size != 1:
            raise ExportError(f"QuantizeLinear node {node.name!r}: its scales are one a channel; it cannot be trained")
        if node.input[1] not in self.grid_of:
            ends = np.iinfo(zero.dtype)
            grid = ActivationGrid(float(scale), int(zero), int(ends.min), int(ends.max), fp16=self.fp16)
            self.grid_of[node.input[1]] = grid
            self.grids.append(grid)

    def _constant(self, node: NodeProto, floats: Mapping[str, np.ndarray], limit: int) -> None:
        """A DequantizeLinear of an initializer: a weight or bias to be trained, or a constant as it is."""
        name, tensor = node.input[0], node.output[0]
        own = floats.get(name.removesuffix(QUANTIZED))
        levels, scale = self.arrays[name], self.arrays[node.input[1]]
        reader = next((each for each in self.readers.get(tensor, []) if each.op_type in WEIGHTED_OPS), None)
        if own is not None and reader is not None and tensor == reader.input[1] and levels.dtype == np.int8:
            axis = next((item.i for item in node.attribute if item.name == "axis"), 1) if scale.size > 1 else 0
            floor = self._floor(reader, len(np.atleast_1d(scale)))
            grid = WeightGrid(_tensor(own), axis=axis, limit=limit, floor=floor, fp16=self.fp16)
            if scale.size == 1 and own.shape[0] != 1:
                raise ExportError(
                    f"{reader.op_type} node {reader.name!r}: its weight has one scale; it cannot be trained"
                )
            self.weight_of[tensor] = grid
            self.weights.append(grid)
            self.places[tensor] = Place(values=name, scale=node.input[1])
        elif own is not None and reader is not None and tensor in reader.input[2:] and levels.dtype == np.int32:
            self._vector(tensor, own, Place(values=name, scale=node.input[1], of=(reader.input[0], reader.input[1])))
        else:
            zero = self.arrays[node.input[2]] if len(node.input) > 2 else 0
            axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
            shape = [-1 if place == axis % max(levels.ndim, 1) else 1 for place in range(levels.ndim)]
            scale, zero = (np.reshape(part, shape) if np.size(part) > 1 else part for part in (scale, zero))
            self._keep(tensor, ((levels.astype(np.int64) - zero) * scale).astype(np.float32))

    def _floor(self, reader: NodeProto, channels: int) -> torch.Tensor | None:
        """Where the bias of `reader` is int32: the least weight scale that keeps it in range."""
        maker = self.makers.get(reader.input[2]) if len(reader.input) > 2 else None
        before = self.makers.get(reader.input[0])
        if maker is None or before is None or maker.op_type != "DequantizeLinear" or before.op_type != maker.op_type:
            return None
        bias = self.arrays[maker.input[0]] * self.arrays[maker.input[1]].astype(np.float64)
        scale = float(self.arrays[before.input[1]])
        return torch.from_numpy(np.abs(np.broadcast_to(bias, (channels,))) / (scale * _BIAS_STEPS))

    def _vector(self, tensor: str, value: np.ndarray, place: Place) -> None:
        self.vectors.append(nn.Parameter(_tensor(value)))
        self.vector_of[tensor] = self.vectors[-1]  # type: ignore[assignment]
        self.places[tensor] = place

    def _keep(self, tensor: str, value: np.ndarray) -> None:
        if tensor not in self.constant_of:
            self.constant_of[tensor] = len(self.kept)
            self.kept.append(nn.Parameter(torch.from_numpy(np.array(value)), requires_grad=False))

    def _is_constant(self, node: NodeProto) -> bool:
        constant = node.op_type == "DequantizeLinear" and node.input[0] in self.arrays
        return node.op_type == "Constant" or constant

    def _step(self, node: NodeProto) -> Step:
        reads = tuple(node.input)
        if node.op_type == "QuantizeLinear":
            return Step(run=self.grid_of[node.input[1]], reads=reads[:1], makes=tuple(node.output), last=())
        if node.op_type == "DequantizeLinear":  # the values behind a Q lie on the grid already
            return Step(run=_same, reads=reads[:1], makes=tuple(node.output), last=())
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise ExportError(
                f"{node.op_type} node {node.name!r} cannot be trained: it is not known to this quantization-aware "
                "training; leave the rung qat out"
            )
        for place in _LEARNED.get(node.op_type, ()):
            name = reads[place] if place < len(reads) else ""
            if name in self.arrays and name not in self.vector_of and self.arrays[name].dtype == np.float32:
                self._vector(name, self.arrays[name], Place(values=name))
        constants = tuple(self.arrays.get(name) for name in reads)
        held = Node(
            name=node.name,
            operator=node.op_type,
            attributes={item.name: _attribute(item) for item in node.attribute},
            constants=constants,
            batch=self.batch,
            outputs=len(node.output),
        )
        for name, value in zip(reads, constants, strict=True):
            if value is not None and name not in self.vector_of:
                self._keep(name, value)
        return Step(run=OPERATORS[node.op_type](held), reads=reads, makes=tuple(node.output), last=())


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _tensor(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float32))


def _constants(model: ModelProto) -> dict[str, np.ndarray]:
    """Initializers and the outputs of Constant nodes."""
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        value = next((item for item in node.attribute if item.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            found[node.output[0]] = numpy_helper.to_array(value.t)
    return found


def _attribute(item: Any) -> Any:
    from onnx import helper

    found = helper.get_attribute_value(item)
    return list(found) if isinstance(found, Sequence) and not isinstance(found, (bytes, str)) else found


def _with_last(steps: list[Step], wanted: set[str]) -> list[Step]:
    """The steps, each with the tensors that nobody reads after it; constants stay."""
    made = {name for step in steps for name in step.makes}
    left = Counter(name for step in steps for name in step.reads)
    found = []
    for step in steps:
        left.subtract(step.reads)
        gone = {name for name in (*step.reads, *step.makes) if name in made and not left[name] and name not in wanted}
        found.append(Step(run=step.run, reads=step.reads, makes=step.makes, last=tuple(sorted(gone))))
    return found


def _add_identity(module: nn.Module, path: str) -> None:
    """An Identity at `path`, so that hooks find there what the network's module of that name gave."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in dict(module.named_children()):
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    if last not in dict(module.named_children()):
        module.add_module(last, nn.Identity())
