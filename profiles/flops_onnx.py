"""Multiply-accumulates of an ONNX graph: float, Q/DQ, integer and ONNX Runtime's fused operators alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import ProfileError
from profiles.flops import Counts
from profiles.onnx_shapes import infer_shapes, load_model, set_input_shapes

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Rule = Callable[["onnx.NodeProto", Shape, Shape, Shape], int]  # node, data, weight, output -> MACs


def _conv(node: onnx.NodeProto, x: Shape, w: Shape, y: Shape) -> int:
    return math.prod(y) * math.prod(w[1:])  # w: (out, in / groups, *kernel)


def _conv_transpose(node: onnx.NodeProto, x: Shape, w: Shape, y: Shape) -> int:
    return math.prod(x) * math.prod(w[1:])  # w: (in, out / groups, *kernel)


def _matmul(node: onnx.NodeProto, x: Shape, w: Shape, y: Shape) -> int:
    return math.prod(y) * x[-1]


def _gemm(node: onnx.NodeProto, x: Shape, w: Shape, y: Shape) -> int:
    return math.prod(y) * (x[0] if _attribute(node, "transA") else x[-1])


def _fused_matmul(node: onnx.NodeProto, x: Shape, w: Shape, y: Shape) -> int:
    return math.prod(y) * (x[-2] if _attribute(node, "transA") else x[-1])


def _attention(node: onnx.NodeProto, q: Shape, k: Shape, y: Shape) -> int:
    """Q K^T and its product with V, both full: a causal mask saves nothing in this convention (ONNX opset 23)."""
    if len(q) == 3:  # (batch, length, heads x size)
        return q[0] * q[1] * k[1] * (q[2] + y[2])
    return math.prod(q[:3]) * k[2] * (q[3] + y[3])  # (batch, heads, length, size)


# operator -> (index of the data input, of the weight input, formula)
COUNTED: dict[str, tuple[int, int, Rule]] = {
    "Conv": (0, 1, _conv),
    "ConvInteger": (0, 1, _conv),
    "QLinearConv": (0, 3, _conv),
    "FusedConv": (0, 1, _conv),
    "ConvTranspose": (0, 1, _conv_transpose),
    "Gemm": (0, 1, _gemm),
    "FusedGemm": (0, 1, _gemm),
    "QGemm": (0, 3, _gemm),
    "MatMul": (0, 1, _matmul),
    "MatMulInteger": (0, 1, _matmul),
    "QLinearMatMul": (0, 3, _matmul),
    "DynamicQuantizeMatMul": (0, 1, _matmul),
    "MatMulIntegerToFloat": (0, 1, _matmul),
    "FusedMatMul": (0, 1, _fused_matmul),
    "Attention": (0, 1, _attention),
}
MOVES = frozenset(
    """
    Cast CastLike Concat Constant ConstantOfShape DepthToSpace Dropout EyeLike Expand Flatten Gather GatherElements
    GatherND Identity OneHot Pad Range Reshape ScatterElements ScatterND SequenceAt SequenceConstruct Shape Size Slice
    SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)
# operator -> inputs that hold scales and zero points, not learned weights
SCALES: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "QLinearGlobalAveragePool": (1, 2, 3, 4),
    "QLinearAveragePool": (1, 2, 3, 4),
    "QLinearSigmoid": (1, 2, 3, 4),
    "QLinearLeakyRelu": (1, 2, 3, 4),
    "QLinearSoftmax": (1, 2, 3, 4),
    "Clip": (1, 2),
    "Resize": (1, 2, 3),
}
PASS_ON = frozenset(
    (
        "Cast",
        "DequantizeLinear",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    )
)


def count_onnx(path: Path, shapes: Mapping[str, Shape] | None = None) -> Counts:
    """Count `path` with every open input sized by `shapes`; external weights are not read.

    `params` leaves out scales, zero points and shape constants, and is smaller than the torch module's where the
    exporter folded a normalisation. Nodes inside If, Loop and Scan are not looked into: those are in `uncounted`.
    """
    model = load_model(path)
    set_input_shapes(model, path, shapes)
    known = infer_shapes(model)
    macs, uncounted = 0, Counter[str]()
    weights: dict[str, int] = {}
    origin = _origins(model)
    for node in model.graph.node:
        if node.op_type == "Attention" and node.domain not in ("", "ai.onnx"):
            uncounted["com.microsoft.Attention"] += 1  # another signature under the same name
        elif node.op_type in COUNTED:
            data, weight, rule = COUNTED[node.op_type]
            macs += rule(node, *(_known(known, name, node, path) for name in _operands(node, data, weight)))
            source = origin(node.input[weight])
            if source and node.op_type != "Attention":
                weights[source] = math.prod(known[source])
        elif node.op_type not in MOVES:
            uncounted[node.op_type] += 1
    return Counts(
        params=_params(model),
        conv_linear_weights=sum(weights.values()),
        macs=macs,
        flops=2 * macs,
        uncounted=dict(sorted(uncounted.items())),
    )


def _operands(node: onnx.NodeProto, data: int, weight: int) -> tuple[str, str, str]:
    return node.input[data], node.input[weight], node.output[0]


def _known(known: Mapping[str, Shape], name: str, node: onnx.NodeProto, path: Path) -> Shape:
    if name not in known:
        raise ProfileError(
            f"{path}: shape of {name!r} at node {node.name or node.output[0]!r} ({node.op_type}) cannot be told; "
            "save the model with shapes (onnx.shape_inference) or count the model it was made from"
        )
    return known[name]


def _origins(model: onnx.ModelProto) -> Callable[[str], str | None]:
    """Tensor name -> the initializer it is made from by quantizing, casting or reshaping alone, if there is one."""
    weights = {tensor.name for tensor in model.graph.initializer}
    made_by = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in PASS_ON and node.output}

    def origin(name: str) -> str | None:
        while name not in weights:
            if name not in made_by:
                return None
            name = made_by[name]
        return name

    return origin


def _params(model: onnx.ModelProto) -> int:
    """Elements of initializers that are weights: no scales or limits, no int64 shape constants, no single factors."""
    import onnx

    products = {name for node in model.graph.node if node.op_type in COUNTED for name in node.input}

    helpers = {node.input[i] for node in model.graph.node for i in SCALES.get(node.op_type, ()) if i < len(node.input)}
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name not in helpers
        and (math.prod(tensor.dims) > 1 or tensor.name in products)
        and tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
    )


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
