"""What the layers of an ONNX graph are called: by their nodes, or as their weights were named in training."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING

from exporters.artifact import ExportError
from exporters.onnx_file import WEIGHTED_OPS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def name_nodes(model: ModelProto) -> None:
    """Give a name of its own to each node that has none, or one that another has, in place."""
    taken = {node.name for node in model.graph.node}
    seen = {""}
    for place, node in enumerate(model.graph.node):
        name = node.name
        while name in seen or (name != node.name and name in taken):
            name = f"{name or node.op_type}_{place}"
        seen.add(name)
        node.name = name


def layer_of(node: NodeProto) -> str:
    """The layer a node belongs to as its weight is named: "stage1.conv2" of "stage1.conv2.weight", or ""."""
    weight = node.input[1] if node.op_type in WEIGHTED_OPS and len(node.input) > 1 else ""
    return weight.removesuffix(".weight") if weight.endswith(".weight") else ""


def named_layers(
    model: ModelProto, names: Collection[str], operators: Collection[str], *, where: str
) -> tuple[str, ...]:
    """The names of the nodes meant by `names`, in the order of computation; an unknown one is an `ExportError`."""
    known = [(node.name, layer_of(node)) for node in model.graph.node if node.op_type in operators]
    meant: set[str] = set()
    for name in names:
        found = {node for node, layer in known if name in (node, layer) or (name and layer.startswith(f"{name}."))}
        if not found:
            choices = sorted({text for pair in known for text in pair if text})
            close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
            advice = (
                f"did you mean {close[0]!r}?" if close else f"known: {_some([layer for _, layer in known if layer])}"
            )
            raise ExportError(f"{where}: keep_fp32: no quantized node or layer {name!r}; {advice}")
        meant |= found
    return tuple(node for node, _ in known if node in meant)


def _some(layers: list[str]) -> str:
    """The first few, and how many there are: a deep net has hundreds."""
    shown = ", ".join(layers[:8])
    return shown if len(layers) <= 8 else f"{shown} and {len(layers) - 8} more, and every node by its name"
