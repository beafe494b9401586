"""Empirical bias correction (Nagel et al. 2019): quantization must not shift the mean output of a layer.

Rounded weights and activations move the mean of an output channel, and what is moved is moved for every image. Layer by
layer, in the order of computation and with all layers before it quantized and corrected, the mean error of each output
channel over the calibration images is taken off the layer's bias. Only sums a channel are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import IOSpec
from exporters.calibrate import explained, open_session
from exporters.calibration_samples import CalibrationSamples
from exporters.onnx_file import graphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

# Of those with weights, MatMul has no bias.
_BIASED = ("Conv", "ConvTranspose", "Gemm")


def with_biases(model: ModelProto) -> ModelProto:
    """A copy in which each convolution and Gemm has a constant bias of its own, zero where it had none."""
    from onnx import ModelProto, numpy_helper

    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    taken = set(constants) | {name for inner in graphs(graph) for node in inner.node for name in node.output}
    reads = Counter(name for inner in graphs(graph) for node in inner.node for name in node.input)
    for node in graph.node:
        channels = _channels(node, constants)
        if channels is None:
            continue
        present = node.input[2] if len(node.input) > 2 else ""
        if present and (present not in constants or reads[present] == 1):
            continue  # a computed bias is left alone, an own one kept
        value = numpy_helper.to_array(constants[present]) if present else np.zeros(channels, np.float32)
        name = f"{node.input[1]}.bias"
        while name in taken:
            name += "_"
        taken.add(name)
        graph.initializer.append(numpy_helper.from_array(value, name))
        del node.input[2:]
        node.input.append(name)
    return copy


def correct_biases(
    model: ModelProto, quantized: ModelProto, batches: Iterable[np.ndarray], *, spec: IOSpec, where: str
) -> tuple[str, ...]:
    """Correct the biases of `quantized` in place, against the fp32 `model` it was made of; returns the nodes corrected.

    Nodes of both are paired by name, and `model` has been through `with_biases`. `batches` is read once and once more
    for each layer, in float32 arrays of the input `spec`, one at a time.
    """
    layers = list(_layers(model, quantized))
    reference = _channel_means(model, [node.output[0] for node, _ in layers], batches, spec=spec, where=where)
    for (_, node), expected in zip(layers, reference, strict=True):
        (found,) = _channel_means(cut(quantized, node.output[0]), [node.output[0]], batches, spec=spec, where=where)
        _shift_bias(quantized, node, expected - found)
    return tuple(node.name for _, node in layers)


def _layers(model: ModelProto, quantized: ModelProto) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Each node with a quantized weight and a bias that can be changed, in the fp32 graph and in the quantized one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    after = {node.name: node for node in quantized.graph.node}
    makers = {name: maker for maker in quantized.graph.node for name in maker.output}
    for node in model.graph.node:
        other = after.get(node.name)
        if other is None or _channels(node, constants) is None or _bias(quantized.graph, other) is None:
            continue
        if other.input[1] in makers and makers[other.input[1]].op_type == "DequantizeLinear":
            yield node, other


@dataclass(frozen=True, kw_only=True)
class Bias:
    """A bias in a quantized graph: the initializer that holds it, and that of its scale ("" for a float bias)."""

    values: str
    scale: str


def _bias(graph: GraphProto, node: NodeProto) -> Bias | None:
    constants = {tensor.name for tensor in graph.initializer}
    name = node.input[2] if len(node.input) > 2 else ""
    if name in constants:
        return Bias(values=name, scale="")
    maker = next((maker for maker in graph.node if name and name in maker.output), None)
    if maker is None or maker.op_type != "DequantizeLinear" or not set(maker.input[:2]) <= constants:
        return None
    return Bias(values=maker.input[0], scale=maker.input[1])


def _shift_bias(quantized: ModelProto, node: NodeProto, shift: np.ndarray) -> None:
    """Add `shift` (channels,) to the bias; an int32 one takes the nearest step of its scale."""
    from onnx import numpy_helper

    bias = _bias(quantized.graph, node)
    assert bias is not None
    tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
    held = numpy_helper.to_array(tensors[bias.values])
    if bias.scale:
        limits = np.iinfo(held.dtype)
        moved = held + np.rint(shift / numpy_helper.to_array(tensors[bias.scale]).astype(np.float64))
        changed = np.clip(moved, limits.min, limits.max).astype(held.dtype)
    else:
        changed = (held + shift).astype(held.dtype)
    tensors[bias.values].CopyFrom(numpy_helper.from_array(changed, bias.values))


def _channel_means(
    model: ModelProto, tensors: list[str], batches: Iterable[np.ndarray], *, spec: IOSpec, where: str
) -> list[np.ndarray]:
    """The mean of each channel (axis 1) of each tensor over all samples, float64."""
    session = open_session(model, tensors, where=where)
    sums: list[np.ndarray | float] = [0.0] * len(tensors)
    counts = [0] * len(tensors)
    for feeds in CalibrationSamples(batches, spec, where=where):
        with explained(where):
            found = session.run(tensors, feeds)
        for place, values in enumerate(found):
            axes = (0, *range(2, values.ndim))
            sums[place] = sums[place] + values.sum(axis=axes, dtype=np.float64)
            counts[place] += values.size // values.shape[1]
    return [np.asarray(total) / count for total, count in zip(sums, counts, strict=True)]


def cut(model: ModelProto, tensor: str) -> ModelProto:
    """A copy of the model with only the nodes that `tensor` needs."""
    from onnx import ModelProto

    makers = {name: node for node in model.graph.node for name in node.output if name}
    needed: set[str] = set()
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        if name in needed or name not in makers:
            continue
        node = makers[name]
        needed.update(node.output)
        waiting.extend(node.input)
        # What an inner graph reads from outside is needed too.
        bodies = (inner for item in node.attribute for inner in ([item.g] if item.HasField("g") else item.graphs))
        waiting.extend(name for body in bodies for part in graphs(body) for entry in part.node for name in entry.input)
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = [node for node in copy.graph.node if needed & set(node.output)]
    read = {name for node in kept for name in node.input}
    constants = [held for held in copy.graph.initializer if held.name in read]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    if not any(item.HasField("g") or item.graphs for node in kept for item in node.attribute):
        del copy.graph.initializer[:]
        copy.graph.initializer.extend(constants)
    return copy


def _channels(node: NodeProto, constants: Mapping[str, TensorProto]) -> int | None:
    """How many output channels a node with a constant weight has; None when its bias cannot be corrected."""
    if node.op_type not in _BIASED or node.input[1] not in constants:
        return None
    dims = constants[node.input[1]].dims
    whole = {item.name: item.i for item in node.attribute}
    if node.op_type == "Conv":
        return dims[0]
    if node.op_type == "ConvTranspose":
        return dims[1] * whole.get("group", 1)
    channels = dims[0] if whole.get("transB", 0) else dims[1]
    beta = next((item.f for item in node.attribute if item.name == "beta"), 1.0)
    # A Gemm may scale its bias, or have one that is no row of channels.
    bias = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    plain = beta == 1 and (bias is None or list(bias.dims) == [channels])
    return channels if plain else None
