"""What an edition of TensorRT accepts, asked of an ONNX graph before anything is built, so that the node is named.

NVIDIA's parser does not say all of it: it reads a QuantizeLinear without a zero point as signed, though ONNX means
unsigned, takes operator sets that it does not know as if it did, and takes per-channel scales on activations and along
a wrong axis without a word. No NVIDIA library is needed here, so a host can ask for a device that it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import ExportError
from exporters.onnx_file import QUANTIZED_OPS, graphs, load_model, nodes
from exporters.tensorrt_api import version_number

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """`zero_points`: Q/DQ must have one written out. `half_scales`: a scale may be fp16 (ONNX: from opset 19)."""

    label: str
    opsets: tuple[int, int]
    zero_points: bool
    half_scales: bool


def rules_of(name: str, version: str) -> Rules:
    """The rules of a runtime ("tensorrt", "tensorrt-rtx") at a version such as "10.3.0".

    Operator sets as the parser's own documentation of that release states them: to 17 for 8.6, 9 to 20 from 10.0, 9 to
    24 from 10.15. Between 10.0 and 10.15 the lower is taken; TensorRT-RTX has the parser of 11.
    """
    number = version_number(version)
    modern = name == "tensorrt-rtx" or number >= (10, 0)
    newest = 24 if name == "tensorrt-rtx" or number >= (10, 15) else 20 if modern else 17
    return Rules(
        label=f"{name} {version}",
        opsets=(9 if modern else 7, newest),
        zero_points=not modern,
        half_scales=modern,
    )


def check_file(path: Path | str, name: str, version: str) -> None:
    """Refuse the ONNX file at `path` for a runtime and version, be they installed here or not."""
    check_graph(load_model(path), rules_of(name, version), where=str(path))


def check_graph(model: ModelProto, rules: Rules, *, where: str, supports: Callable[[str], bool] | None = None) -> None:
    """Raise an `ExportError` that names the first node which `rules` refuse. `supports` is the parser's own word."""
    for fault in faults(model, rules, supports=supports):
        raise ExportError(f"{where}: {fault}")


def faults(model: ModelProto, rules: Rules, *, supports: Callable[[str], bool] | None = None) -> Iterator[str]:
    """Every reason why `rules` refuse the graph, a line each."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    oldest, newest = rules.opsets
    if not oldest <= opset <= newest:
        yield f"has opset {opset}; {rules.label} takes {oldest} to {newest}; give it in opset {newest}"
    functions = {function.name for function in model.functions}
    graph = _Graph.of(model)
    # What quantizes comes first: in a file of the unsigned form, that says more than its int32 biases.
    for node in sorted(nodes(model), key=lambda node: node.op_type != "QuantizeLinear"):
        problem = _operator(node, rules, functions, supports)
        if problem is None and node.op_type in _QUANTIZERS:
            problem = _quantizer(node, graph, rules)
        if problem is not None:
            yield f"node {label(node)} ({node.op_type}) {problem}"


def label(node: NodeProto) -> str:
    """A node as it is named to people: its name, or that of its first output."""
    return repr(node.name or (node.output[0] if node.output else "?"))


@dataclass(frozen=True, kw_only=True)
class _Graph:
    constants: dict[str, TensorProto]
    users: dict[str, list[NodeProto]]
    makers: dict[str, NodeProto]

    @classmethod
    def of(cls, model: ModelProto) -> _Graph:
        constants = {tensor.name: tensor for graph in graphs(model.graph) for tensor in graph.initializer}
        users: dict[str, list[NodeProto]] = {}
        makers: dict[str, NodeProto] = {}
        for node in nodes(model):
            makers.update((name, node) for name in node.output)
            if node.op_type == "Constant":
                constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
            for name in node.input:
                users.setdefault(name, []).append(node)
        return cls(constants=constants, users=users, makers=makers)

    def weight(self, name: str) -> TensorProto | None:
        """The constant behind `name`, through Q and DQ; None for an activation."""
        while name not in self.constants:
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in _QUANTIZERS:
                return None
            name = maker.input[0]
        return self.constants[name]


def _operator(
    node: NodeProto, rules: Rules, functions: Collection[str], supports: Callable[[str], bool] | None
) -> str | None:
    if node.op_type in (*QUANTIZED_OPS, "DynamicQuantizeLinear", "QLinearMatMul"):
        return f"is no operator of {rules.label}; quantize with Q/DQ nodes (the portable form)"
    if node.op_type in functions or node.op_type == "Constant":
        return None
    if supports is not None and not supports(node.op_type):
        return f"is no operator of {rules.label}; export the model without it"
    return None


def _quantizer(node: NodeProto, graph: _Graph, rules: Rules) -> str | None:
    """Zero point 0 and signed, scales constant, positive and of a type the edition takes, channels on their axis."""
    return _types(node, graph, rules) or _scales(node, graph, rules) or _axis(node, graph)


def _types(node: NodeProto, graph: _Graph, rules: Rules) -> str | None:
    from onnx import TensorProto

    unsigned = "is unsigned; TensorRT takes signed int8: quantize in the portable form"
    given = node.input[2] if len(node.input) > 2 else ""
    if given:
        if given not in graph.constants:
            return "has a zero point that is computed; it must be a constant 0"
        zero = graph.constants[given]
        if zero.data_type == TensorProto.UINT8:
            return unsigned
        if zero.data_type == TensorProto.INT32:
            return "dequantizes an int32 bias; leave biases in float (QuantizeBias=False)"
        if _values(zero).any():
            return f"has zero point {_values(zero).ravel()[0]:g}; only 0 (symmetric) is taken"
        return None
    if rules.zero_points:
        return f"has no zero point; {rules.label} wants a constant 0"
    stored = graph.constants.get(node.input[0])
    if node.op_type == "QuantizeLinear":
        stated = next((item.i for item in node.attribute if item.name == "output_dtype"), TensorProto.UINT8)
        return unsigned if stated in (TensorProto.UNDEFINED, TensorProto.UINT8) else None
    if stored is not None and stored.data_type == TensorProto.UINT8:
        return unsigned
    if stored is not None and stored.data_type == TensorProto.INT32:
        return "dequantizes an int32 bias; leave biases in float (QuantizeBias=False)"
    return None


def _scales(node: NodeProto, graph: _Graph, rules: Rules) -> str | None:
    from onnx import TensorProto

    if len(node.input) < 2 or node.input[1] not in graph.constants:
        return "has a scale that is computed; it must be a constant"
    scale = graph.constants[node.input[1]]
    if scale.data_type == TensorProto.FLOAT16 and not rules.half_scales:
        return f"has an fp16 scale; {rules.label} takes fp32 scales: make its file from the fp32 one"
    if scale.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return f"has a scale of type {TensorProto.DataType.Name(scale.data_type)}; it must be FLOAT or FLOAT16"
    values = _values(scale)
    if not values.size or not (np.isfinite(values).all() and (values > 0).all()):
        worst = values.ravel()[~(np.isfinite(values.ravel()) & (values.ravel() > 0))]
        return f"has scale {worst[0]:g}; scales must be positive" if worst.size else "has an empty scale"
    return None


def _axis(node: NodeProto, graph: _Graph) -> str | None:
    """More than one scale is for weights, and lies on the output channels of what they are the weights of."""
    count = _values(graph.constants[node.input[1]]).size
    if count == 1:
        return None
    weight = graph.weight(node.input[0])
    if weight is None:
        return f"has {count} scales for an activation; give it one (per tensor)"
    rank = len(weight.dims)
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    for user in graph.users.get(node.output[0], ()):
        wanted = _channel_axis(user, rank) if list(user.input[1:2]) == [node.output[0]] else None
        if wanted is not None and axis % rank != wanted:
            users = f"{label(user)} ({user.op_type})"
            return f"has its scales on axis {axis}; those of the weights of {users} lie on axis {wanted}"
    return None


def _channel_axis(user: NodeProto, rank: int) -> int | None:
    """The axis of the output channels in the weights of `user`; None when it has none."""
    if user.op_type == "Gemm":
        return 0 if next((item.i for item in user.attribute if item.name == "transB"), 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(user.op_type)


def _values(tensor: TensorProto) -> np.ndarray:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor), np.float64)
