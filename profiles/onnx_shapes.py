"""Shapes of every tensor of an ONNX graph, once its inputs have sizes. Needs onnx only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import ProfileError

if TYPE_CHECKING:
    import onnx

# ONNX Runtime's own operators -> (a standard operator with the same output shape, which inputs to hand it).
# They appear in graphs that ONNX Runtime wrote; ONNX's shape inference does not know them.
STAND_INS: dict[str, tuple[str, tuple[int, ...]]] = {
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)),
    "FusedMatMul": ("MatMul", (0, 1)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QuickGelu": ("Identity", (0,)),
    "Gelu": ("Identity", (0,)),
    "FastGelu": ("Identity", (0,)),
    "BiasGelu": ("Identity", (0,)),
    "QuantizeLinear": ("Identity", (0,)),
    "DequantizeLinear": ("Identity", (0,)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
}
# attributes that shape the output; others of the stand-in's original are dropped
KEPT = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "ceil_mode", "transA", "transB")


def load_model(path: Path) -> onnx.ModelProto:
    """The graph without external weights, local functions inlined. ProfileError when it is no ONNX file."""
    import onnx
    from onnx import inliner

    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such file") from None
    except Exception:  # protobuf's DecodeError has no public base
        raise ProfileError(f"{path}: not an ONNX file; give one that onnx.checker accepts") from None
    if not model.graph.node:
        raise ProfileError(f"{path}: not an ONNX file; it holds no graph")
    return inliner.inline_local_functions(model) if model.functions else model


def set_input_shapes(model: onnx.ModelProto, path: Path, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Write `shapes` into the graph's inputs, in place; raise ProfileError for one that is open, unknown or unfit."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    for name in shapes or {}:
        if name not in inputs:
            raise ProfileError(f"{path}: has no input {name!r}; its inputs are {', '.join(sorted(inputs))}")
    for name, value in inputs.items():
        tensor = value.type.tensor_type
        dims = list(tensor.shape.dim) if tensor.HasField("shape") else None
        given = (shapes or {}).get(name)
        told = None if dims is None else [d.dim_value or d.dim_param or "?" for d in dims]
        if given is None:
            if told is None or not all(isinstance(size, int) for size in told):
                example = ",".join(str(s) if isinstance(s, int) else "1" for s in told or (1, 3, 224, 224))
                have = "no shape" if told is None else f"open sizes {','.join(map(str, told))}"
                raise ProfileError(f"{path}: input {name!r} has {have}; give --input, such as --input {example}")
            continue
        if told is not None and (
            len(given) != len(told)
            or any(isinstance(size, int) and size != want for size, want in zip(told, given, strict=True))
        ):
            raise ProfileError(
                f"{path}: input {name!r} is {','.join(map(str, told))}; got {','.join(map(str, given))}; "
                "give sizes that fit it"
            )
        tensor.shape.Clear()
        tensor.shape.SetInParent()
        for size in given:
            tensor.shape.dim.add().dim_value = size


def infer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, for all whose sizes are known; initializers are among them."""
    import onnx
    from onnx import shape_inference

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    for node in graph.node:
        _replace_by_stand_in(node)
    # Shapes written for other sizes must not win over the ones inferred now.
    static = [value for value in graph.value_info if _shape(value) is not None]
    del graph.value_info[:]
    graph.value_info.extend(static)
    for value in graph.output:
        if _shape(value) is None:
            value.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(plain, check_type=False, strict_mode=False, data_prop=True).graph
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = _shape(value)
        if shape is not None:
            known.setdefault(value.name, shape)
    return known


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _replace_by_stand_in(node: onnx.NodeProto) -> None:
    if node.domain in ("", "ai.onnx") or node.op_type not in STAND_INS:
        return
    name, picks = STAND_INS[node.op_type]
    inputs = [node.input[i] for i in picks if i < len(node.input)]
    attributes = [attribute for attribute in node.attribute if attribute.name in KEPT]
    node.domain, node.op_type = "", name
    del node.input[:]
    del node.attribute[:]
    node.input.extend(inputs)
    node.attribute.extend(attributes)
