"""What is in an ONNX file, whoever made it: operators, weights, precision, quantized share, metadata. No runtime."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.artifact import ExportError, parse_metadata
from exporters.base import Shapes, fix_shapes
from exporters.onnx_file import QUANTIZED_OPS, WEIGHTED_OPS, graph_precision, graphs, io_specs, load_graph, nodes

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

# Operators of onnxruntime's own; its optimized files use them, and the runtimes here know them.
VENDOR_DOMAINS = ("com.microsoft", "com.microsoft.nchwc")


def describe(path: Path | str, shapes: Shapes | None = None) -> dict[str, Any]:
    """A JSON-able description of an ONNX file; `shapes` fills open input sizes, which are refused without it.

    `params` counts the numbers in weights, quantized ones included; scales, zero points and shapes are not parameters.
    `precision_share` is the share of weight bytes by NumPy dtype. `quantized_share` is the share of Conv,
    ConvTranspose, Gemm and MatMul nodes that compute on quantized values, null without such nodes.
    An operator that the ONNX standard does not know is an `ExportError` that names its node.
    """
    model = load_graph(path)
    refuse_unknown_operators(model, path)
    inputs, outputs = io_specs(model)
    sizes = _bytes_by_dtype(model)
    total = sum(sizes.values())
    return {
        "path": str(path),
        "size_bytes": Path(path).stat().st_size,
        "ir_version": model.ir_version,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": " ".join(part for part in (model.producer_name, model.producer_version) if part) or None,
        "inputs": [_io(spec) for spec in fix_shapes(inputs, shapes, where=str(path))],
        "outputs": [_io(spec) for spec in outputs],
        "params": _count_params(model),
        "precision": graph_precision(model),
        "precision_share": {dtype: size / total for dtype, size in sorted(sizes.items())},
        "quantized_share": _quantized_share(model),
        "operators": dict(sorted(Counter(node.op_type for node in nodes(model)).items())),
        "metadata": parse_metadata({prop.key: prop.value for prop in model.metadata_props}, where=str(path)),
    }


def _io(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def refuse_unknown_operators(model: ModelProto, path: Path | str) -> None:
    from onnx import defs

    versions = {_domain(entry.domain): entry.version for entry in model.opset_import}
    functions = {(_domain(function.domain), function.name) for function in model.functions}
    for node in nodes(model):
        domain = _domain(node.domain)
        if domain in VENDOR_DOMAINS or (domain, node.op_type) in functions:
            continue
        if not defs.has(node.op_type, max_inclusive_version=versions.get(domain, 1), domain=domain):
            operator = f"{domain}::{node.op_type}" if domain else node.op_type
            raise ExportError(
                f"{path}: node {node.name or node.output[0]!r} has the unsupported operator {operator} (opset "
                f"{versions.get(domain, 'not stated')}); export the model with standard ONNX operators"
            )


def _domain(name: str) -> str:
    """The standard's own domain has two names."""
    return "" if name == "ai.onnx" else name


def _weights(model: ModelProto) -> list[TensorProto]:
    constants = [tensor for graph in graphs(model.graph) for tensor in graph.initializer]
    for node in nodes(model):
        if node.op_type == "Constant":
            constants += [item.t for item in node.attribute if item.name == "value"]
    return constants


def _bytes_by_dtype(model: ModelProto) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for tensor in _weights(model):
        dtype = _dtype(tensor)
        sizes[dtype] += math.ceil(math.prod(tensor.dims) * _bits(dtype) / 8)
    return sizes


def _dtype(tensor: TensorProto) -> str:
    from onnx import TensorProto as Kinds

    # onnx calls float32 FLOAT and float64 DOUBLE; every other name is NumPy's (or ml_dtypes') in capitals.
    name = Kinds.DataType.Name(tensor.data_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _bits(dtype: str) -> int:
    """16 of `bfloat16`, 8 of `float8e4m3fn`; a bool takes a byte."""
    found = re.search(r"\d+", dtype)
    return int(found.group()) if found else 8


def _count_params(model: ModelProto) -> int:
    """Numbers in weights: floats, and what integers stand for them; not scales, zero points, shapes or axes."""
    settings, stored = set[str](), set[str]()
    for node in nodes(model):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            settings.update(node.input[1:])
            stored.update(node.input[:1])
    count = 0
    for tensor in _weights(model):
        dtype = _dtype(tensor)
        # Weights of QLinearConv and its kin are small integers of two or more dimensions; their zero points have fewer.
        weight = "float" in dtype or tensor.name in stored or (_bits(dtype) <= 8 and len(tensor.dims) >= 2)
        if weight and tensor.name not in settings:
            count += math.prod(tensor.dims)
    return count


def _quantized_share(model: ModelProto) -> float | None:
    maker = {name: node.op_type for node in nodes(model) for name in node.output}
    plain = quantized = 0
    for node in nodes(model):
        if node.op_type in QUANTIZED_OPS:
            quantized += 1
        elif node.op_type in WEIGHTED_OPS:
            fed = [maker.get(name) == "DequantizeLinear" for name in node.input[:2]]
            quantized += all(fed)
            plain += not all(fed)
    return quantized / (plain + quantized) if plain + quantized else None
