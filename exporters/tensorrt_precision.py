"""The precision that was asked for against the one that was obtained: a silent fp32 engine is an error.

Where TensorRT is strongly typed, the tensor types of the parsed network are what the engine computes in, and they can
be read without a GPU. A convolution or matrix product counts as int8 when both its inputs come out of dequantization
from int8. Edition 8.6 chooses types while it builds; there the inspector of the built engine is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporters.artifact import ExportError
from exporters.onnx_file import WEIGHTED_OPS, nodes

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHTED_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
# Layers that hand on values without computing with them.
_PASSING = ("SHUFFLE", "IDENTITY", "SLICE", "SQUEEZE", "UNSQUEEZE")
# How an inspector writes the types of a layer's tensors: "Row major linear FP32", "... Int8 format", "Half".
_INSPECTED = (("int8", r"int8"), ("fp16", r"fp16|half"), ("bf16", r"bf16"), ("fp32", r"fp32|float"))
_INSPECTED_LAYERS = re.compile(r"conv|gemm|matrixmultiply|matrix_multiply|fullyconnected", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Obtained:
    """`layers`: precision -> how many convolutions, deconvolutions and matrix products compute in it.

    `others` names those that are not in the precision asked for, in order; `source` is where it was read.
    """

    layers: dict[str, int]
    others: tuple[str, ...]
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"layers": self.layers, "others": list(self.others), "source": self.source}


def of_network(network: Any, requested: str) -> Obtained:
    """What a parsed, strongly typed network computes in."""
    makers = _makers(network)
    found = [
        (layer.name, _precision(layer, makers)) for layer in _layers(network) if layer.type.name in WEIGHTED_LAYERS
    ]
    return _obtained(found, requested, source="parsed network")


def of_inspector(inspected: Mapping[str, Any], requested: str) -> Obtained:
    """What a built engine computes in, from its inspector's JSON (detailed)."""
    found = []
    for layer in inspected.get("Layers", []):
        if not isinstance(layer, dict) or not _INSPECTED_LAYERS.search(str(layer.get("LayerType", ""))):
            continue
        inputs = layer.get("Inputs") or [{}]
        kind = " ".join(str(inputs[0].get(key, "")) for key in ("Format/Datatype", "DataType", "Datatype"))
        found.append((str(layer.get("Name", "?")), _inspected(kind)))
    return _obtained(found, requested, source="engine inspector")


def check_obtained(obtained: Obtained, requested: str, model: ModelProto, *, where: str, label: str) -> None:
    """Refuse an engine that is not what was asked for; a graph without such layers has nothing to refuse.

    A layer that the graph itself keeps at a higher precision is allowed as long as most have the one asked for.
    """
    total, got = sum(obtained.layers.values()), obtained.layers.get(requested, 0)
    if not total:
        if any(node.op_type in WEIGHTED_OPS for node in nodes(model)):
            raise ExportError(
                f"{where}: {label} shows none of its convolutions and products, so its precision is unknown"
            )
        return
    if 2 * got > total:
        return
    first = obtained.others[0]
    counts = ", ".join(f"{name} {count}" for name, count in sorted(obtained.layers.items()))
    raise ExportError(
        f"{where}: asked for {requested}, got {got} of {total} layers in it ({counts}); the first that is not is "
        f"{first!r}: give {label} a graph in {requested}"
    )


def _obtained(found: list[tuple[str, str]], requested: str, *, source: str) -> Obtained:
    return Obtained(
        layers=dict(sorted(Counter(kind for _, kind in found).items())),
        others=tuple(name for name, kind in found if kind != requested),
        source=source,
    )


def _inspected(text: str) -> str:
    return next((name for name, pattern in _INSPECTED if re.search(pattern, text, re.IGNORECASE)), "unknown")


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _makers(network: Any) -> dict[str, Any]:
    """Tensor name -> the layer that makes it."""
    return {layer.get_output(k).name: layer for layer in _layers(network) for k in range(layer.num_outputs)}


def _precision(layer: Any, makers: dict[str, Any]) -> str:
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    inputs = [tensor for tensor in inputs if tensor is not None][:2]
    kinds = [_source_type(tensor, makers) for tensor in inputs]
    # A convolution with constant weights has one input here; quantized weights come as the second.
    if kinds and all(kind == "INT8" for kind in kinds) and len(kinds) == 2:
        return "int8"
    plain = next((tensor.dtype.name for tensor in inputs), "?")
    return _NAMES.get(plain, plain.lower())


def _source_type(tensor: Any, makers: dict[str, Any]) -> str:
    """The type that a tensor was dequantized from, or else its own."""
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in _PASSING and layer.num_inputs:
        layer = makers.get(layer.get_input(0).name)
    if layer is not None and layer.type.name == "DEQUANTIZE":
        return layer.get_input(0).dtype.name
    return tensor.dtype.name
