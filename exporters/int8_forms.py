"""The int8 forms for NVIDIA's runtimes, made from the portable placement of Q/DQ.

- "gpu": what Q/DQ leaves in float computes in fp16, scales included (ONNX allows those from opset 19), because
  leftovers in fp32 made int8 engines slower than fp16 ones. Layers that fp16 cannot hold, by measuring, stay in fp32.
  For TensorRT 10.x, 11.x and TensorRT-RTX.
- "trt86": opset 17 and fp32 scales, the newest that TensorRT 8.6 takes; its FP16 flag does the rest. The graph is
  converted by onnx and run beside the one it came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import ExportError, IOSpec
from exporters.half_graph import FP16_TINY, to_half
from exporters.layer_names import name_nodes
from exporters.opset import TRT_8, check_same, opset_of, to_opset
from exporters.tensorrt_check import check_graph, rules_of
from exporters.to_fp16 import measured

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OLDEST_HALF_SCALES = 19
_TRT_8 = "8.6.2"


def adapted(
    model: ModelProto, form: str, batches: Iterable[np.ndarray], *, spec: IOSpec, where: str
) -> tuple[ModelProto, Iterable[np.ndarray]]:
    """The fp32 model in the operator set that `form` needs, and `batches` as they were; the portable and the cpu form
    take any from 13, in which Q/DQ got scales for each channel."""
    before = opset_of(model)
    wanted = {"gpu": max(before, OLDEST_HALF_SCALES), "trt86": TRT_8}.get(form, max(before, 13))
    if wanted == before:
        return model, batches
    converted = to_opset(model, wanted, where=where)
    first, batches = _first_of(batches)
    if first is not None:
        check_same(model, converted, {spec.name: first}, where=where)
    return converted, batches


def finished(
    quantized: ModelProto, prepared: ModelProto, form: str, batches: Iterable[np.ndarray], *, where: str
) -> tuple[ModelProto, dict[str, str]]:
    """The model with Q/DQ in its final types, and what the metadata says of that. For "gpu", `prepared`, the model
    before Q/DQ, is run on `batches` once more."""
    if form == "trt86":
        check_graph(quantized, rules_of("tensorrt", _TRT_8), where=where)
        return quantized, {}
    if form != "gpu":
        return quantized, {}
    name_nodes(prepared)
    try:
        kept, facts = measured(prepared, batches, where=where)
    except ExportError as error:
        if "no calibration samples" in str(error):
            raise ExportError(
                f"{where}: the gpu form reads the calibration samples twice and got none the second time; give a list, "
                "or a stream that starts again"
            ) from None
        raise
    single = {each.node for each in kept}
    single |= _quantizers_of(quantized, single)
    _round_scales(quantized, single)
    # Nodes that onnxruntime's quantizer made may share a name with none: what is kept goes by name.
    return to_half(quantized, single, where=where), facts


def _first_of(batches: Iterable[np.ndarray]) -> tuple[np.ndarray | None, Iterable[np.ndarray]]:
    """The first batch, and an iterable that still begins with it."""
    started = iter(batches)
    first = next(started, None)
    if started is not batches or first is None:
        return first, batches
    return first, itertools.chain([first], started)


def _quantizers_of(model: ModelProto, single: set[str]) -> set[str]:
    """The Q/DQ nodes whose values a node of `single` reads: fp16 could not hold them either."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = set()
    for node in model.graph.node:
        if node.name not in single:
            continue
        for name in node.input:
            maker = makers.get(name)
            while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear"):
                found.add(maker.name)
                maker = makers.get(maker.input[0])
    return found


def _round_scales(model: ModelProto, single: set[str]) -> None:
    """Round every scale that will be fp16 up to one, in place, and the integers of weights to their new scale.

    Up, so that nothing is clipped that was not. Activations are quantized and dequantized by the same rounded scale.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    rounded: dict[str, np.ndarray] = {}
    for node in nodes:
        name = node.input[1]
        if node.name in single or name in rounded:
            continue
        before = numpy_helper.to_array(tensors[name])
        rounded[name] = after = _up(before)
        weight = tensors.get(node.input[0])
        if weight is not None:
            axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
            integers = numpy_helper.to_array(weight)
            shape = [1] * integers.ndim
            if before.ndim:
                shape[axis] = before.size
            ratio = (before.astype(np.float64) / after.astype(np.float64)).reshape(shape)
            fitted = np.clip(np.rint(integers * ratio), -128, 127).astype(integers.dtype)
            weight.CopyFrom(numpy_helper.from_array(fitted, weight.name))
        tensors[name].CopyFrom(numpy_helper.from_array(after, name))


def _up(scales: np.ndarray) -> np.ndarray:
    """float32 scales at the next number of fp16 that is not smaller, as float32."""
    near = np.maximum(scales, np.float32(FP16_TINY)).astype(np.float16)
    with np.errstate(over="ignore"):  # the next number after the largest, which is taken nowhere
        above = np.nextafter(near, np.float16(np.inf))
    return np.where(near.astype(np.float32) < scales, above, near).astype(np.float32)
