"""ONNX fp32 -> ONNX fp16: weights and arithmetic in half, inputs and outputs still fp32.

On a CPU this halves the file and saves no time (onnxruntime 1.0x of fp32 on ResNets, 0.6x on MobileNetV2); it is meant
for GPUs. Folding BatchNorm first, as the exporter does, halves the error against exporting `model.half()`. With
samples, the layers that fp16 cannot hold are found by measuring and stay in fp32 (`exporters.half_ranges`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import Artifact, ExportError, installed_versions
from exporters.base import missing_package
from exporters.half_graph import FP16_MAX, SINGLE_OPS, constants_as_weights, to_half
from exporters.half_ranges import Kept, unfit_nodes
from exporters.layer_names import name_nodes
from exporters.onnx_file import (
    add_versions,
    graph_precision,
    io_specs,
    load_model,
    nodes,
    onnx_artifact,
    save_model,
    set_metadata,
)

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def convert_fp16(
    source: Path | str,
    path: Path | str,
    *,
    keep_fp32: tuple[str, ...] = (),
    batches: Iterable[np.ndarray] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Artifact:
    """Write the fp32 ONNX file `source` as fp16 at `path`; metadata and the fp32 inputs and outputs are kept.

    `batches` yields arrays of the model's one input, preprocessed; with them the layers whose measured values overflow
    or underflow fp16 stay in fp32, and the file's metadata says which and why (`fp16_kept`). `keep_fp32` names operator
    types that stay in fp32 too, besides those that have no fp16 form (Resize, TopK, ...). Without samples a weight
    beyond fp16's range is an `ExportError` that names it, and values that overflow while running show in the parity
    check after this hop. `say` gets a line about what stays.
    """
    model = load_model(source)
    if (found := graph_precision(model)) != "fp32":
        raise ExportError(f"{source}: is {found} already; give the fp32 file")
    constants_as_weights(model)
    name_nodes(model)
    chosen = {node.name for node in model.graph.node if node.op_type in keep_fp32}
    changes = {"precision": "fp16"}
    if batches is None:
        for tensor, worst, node in _overflows(model, {*SINGLE_OPS, *keep_fp32}):
            raise ExportError(
                f"{source}: {tensor!r} of node {node.name!r} ({node.op_type}) holds {worst:.4g}, beyond fp16's "
                f"{FP16_MAX:g}; keep {node.op_type} in fp32 (keep_fp32) or leave this model in fp32"
            )
    else:
        found, facts = measured(model, batches, where=str(source))
        changes |= facts
        chosen |= {kept.node for kept in found}
        for kept in found:
            say(f"stays in fp32: {kept}")
    model = to_half(model, chosen, where=str(source))
    set_metadata(model, changes)
    made_by = add_versions(model, installed_versions("onnx"))
    save_model(model, path)
    return onnx_artifact(model, path, precision="fp16", made_by=made_by)


def measured(
    model: ModelProto, batches: Iterable[np.ndarray], *, where: str
) -> tuple[tuple[Kept, ...], dict[str, str]]:
    """The nodes of `model`, all named, that fp16 cannot hold on `batches`, and what the metadata says of them."""
    if reason := missing_package("onnxruntime", "ort"):
        raise ExportError(f"{where}: measuring what fp16 holds needs {reason}")
    inputs, _ = io_specs(model)
    if len(inputs) != 1 or inputs[0].dtype != "float32":
        got = ", ".join(map(str, inputs))
        raise ExportError(f"{where}: measuring what fp16 holds needs a model with one float32 input; it has {got}")
    found, samples = unfit_nodes(model, batches, spec=inputs[0], where=where)
    facts = {"fp16_samples": str(samples.count), "fp16_samples_sha256": samples.sha256}
    if found:
        facts["fp16_kept"] = json.dumps({kept.node: kept.reason for kept in found}, sort_keys=True, ensure_ascii=False)
    return found, facts


def _overflows(model: ModelProto, blocked: set[str]) -> Iterator[tuple[str, float, NodeProto]]:
    """Constants that do not fit fp16: name, the value, and the node that would compute with it in fp16."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes(model):
        if node.op_type in blocked:
            continue
        for name in node.input:
            if name not in constants or constants[name].data_type != TensorProto.FLOAT:
                continue
            values = numpy_helper.to_array(constants[name])
            # An infinity is meant (a mask); only finite numbers are lost.
            large = np.abs(values[np.isfinite(values)])
            if large.size and large.max() > FP16_MAX:
                yield name, float(large.max()), node
