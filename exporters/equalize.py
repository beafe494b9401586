"""Cross-layer equalization (Nagel et al. 2019, Data-Free Quantization): even ranges, the same function.

A ReLU commutes with a positive factor, so output channel c of one convolution may be divided by any s_c > 0 when input
channel c of the next is multiplied by it: the net computes the same. With

    s_c = sqrt(r1_c / r2_c),    r1_c = max |W1 of output channel c|,    r2_c = max |W2 of input channel c|

both ranges become sqrt(r1_c * r2_c), and no channel is lost in the coarse grid that a wide one forces on a tensor.

A pair is Conv -> Conv with a Relu or nothing between them and no other reader on the way, so that what is equalized is
all that sees the factor. ReLU6 (Clip with an upper limit) does not commute with a factor: the limit would have to
become one a channel, which runtimes do not fuse. Such pairs are left alone and counted; or, where `relax` asks for it,
that ReLU6 becomes a ReLU first, as in the paper. The net then computes something else where an activation exceeds the
limit, so what that costs has to be judged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import ExportError
from exporters.onnx_file import graphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

SWEEPS = 40
_ENOUGH = 1e-3  # a sweep that changes no channel by more than 0.1 % ends it
# A channel this much narrower than its layer's widest is all but dead; to widen it would only widen its bias.
_DEAD = 1e-4


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two convolutions by the names of their weights, and of the first one's bias ("" without)."""

    first: str
    bias: str
    second: str
    groups: int


@dataclass(frozen=True, kw_only=True)
class Equalized:
    """`clipped` counts pairs left alone because a clipping activation, such as ReLU6, stands between them."""

    model: ModelProto
    pairs: tuple[Pair, ...]
    clipped: int


def equalize(model: ModelProto, *, where: str, relax: bool = False) -> Equalized:
    """A copy of the fp32 `model` with equalized weights, which computes the same; without a pair an `ExportError`.

    `relax`: each ReLU6 between two convolutions becomes a ReLU, which does not compute the same.
    """
    from onnx import ModelProto, numpy_helper

    if relax:
        model = relaxed(model)
    found, clipped = pairs(model)
    if not found:
        beside = f"; {clipped} stand around a ReLU6, which cannot be equalized" if clipped else ""
        raise ExportError(
            f"{where}: nothing to equalize: no two convolutions follow each other with a Relu or nothing between them"
            f"{beside}; leave equalize out"
        )
    copy = ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    names = {name for pair in found for name in (pair.first, pair.bias, pair.second) if name}
    arrays = {name: numpy_helper.to_array(tensors[name]).astype(np.float64) for name in names}
    for _ in range(SWEEPS):
        changes = [_equalize_pair(arrays, pair) for pair in found]
        if max(changes) < _ENOUGH:
            break
    for name, array in arrays.items():
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return Equalized(model=copy, pairs=tuple(found), clipped=clipped)


def _equalize_pair(arrays: dict[str, np.ndarray], pair: Pair) -> float:
    """Scale one pair in place; returns the largest |log| of its factors."""
    first, second = arrays[pair.first], arrays[pair.second]
    r1 = np.abs(first).reshape(len(first), -1).max(axis=1)
    # Input channel c of a grouped convolution is read by the output channels of its group alone.
    grouped = second.reshape(pair.groups, -1, *second.shape[1:])
    r2 = np.abs(grouped).reshape(*grouped.shape[:3], -1).max(axis=(1, 3)).ravel()
    alive = (r1 > _DEAD * r1.max()) & (r2 > _DEAD * r2.max())
    factor = np.sqrt(np.where(alive, r1, 1) / np.where(alive, r2, 1))
    arrays[pair.first] = first / factor.reshape(-1, *[1] * (first.ndim - 1))
    if pair.bias:
        arrays[pair.bias] = arrays[pair.bias] / factor
    by_group = factor.reshape(pair.groups, 1, -1, *[1] * (second.ndim - 2))
    arrays[pair.second] = (grouped * by_group).reshape(second.shape)
    return float(np.abs(np.log(factor)).max())


def pairs(model: ModelProto) -> tuple[list[Pair], int]:
    """What can be equalized, in the order of computation, and how many pairs a clipping activation forbids."""
    graph = model.graph
    reads = Counter(name for inner in graphs(graph) for node in inner.node for name in node.input if name)
    reads.update(output.name for inner in graphs(graph) for output in inner.output)
    reader = {name: node for node in graph.node for name in node.input}
    weights = _own_weights(graph, reads)
    found: list[Pair] = []
    clipped = 0
    for node in graph.node:
        if node.op_type != "Conv" or not _plain(node, weights):
            continue
        tensor, stopped = node.output[0], False
        while reads[tensor] == 1 and tensor in reader and reader[tensor].op_type in ("Relu", "Clip"):
            stopped = stopped or reader[tensor].op_type == "Clip"
            tensor = reader[tensor].output[0]
        follower = reader.get(tensor)
        if reads[tensor] != 1 or follower is None or follower.op_type != "Conv" or not _plain(follower, weights):
            continue
        if tensor != follower.input[0]:
            continue
        if stopped:
            clipped += 1
            continue
        bias = node.input[2] if len(node.input) > 2 else ""
        groups = next((item.i for item in follower.attribute if item.name == "group"), 1)
        found.append(Pair(first=node.input[1], bias=bias, second=follower.input[1], groups=groups))
    return found, clipped


def relaxed(model: ModelProto) -> ModelProto:
    """A copy with a Relu in the place of every ReLU6 that keeps two convolutions from being equalized."""
    from onnx import ModelProto, helper, numpy_helper

    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    for node in graph.node:
        low = constants.get(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
        if low is None or makers.get(node.input[0]) != "Conv" or readers.get(node.output[0]) != ["Conv"]:
            continue
        if float(numpy_helper.to_array(low)) == 0:
            node.CopyFrom(helper.make_node("Relu", node.input[:1], node.output, node.name))
    return copy


def _own_weights(graph: GraphProto, reads: Counter[str]) -> set[str]:
    """Float32 initializers that one node alone reads, and no caller can replace."""
    from onnx import TensorProto

    inputs = {value.name for value in graph.input}
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and reads[tensor.name] == 1 and tensor.name not in inputs
    }


def _plain(node: NodeProto, weights: set[str]) -> bool:
    """Whether the weight and the bias of a convolution are constants of its own."""
    return all(name in weights for name in node.input[1:] if name)
