"""ONNX fp32 -> ONNX fp16: weights and arithmetic in half, inputs and outputs still fp32.

On a CPU this halves the file and saves no time (onnxruntime 1.0x of fp32 on ResNets, 0.6x on MobileNetV2); it is meant
for GPUs. Folding BatchNorm first, as the exporter does, halves the error against exporting `model.half()`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import Artifact, ExportError, installed_versions
from exporters.base import missing_package
from exporters.onnx_file import (
    add_versions,
    graph_precision,
    load_model,
    nodes,
    onnx_artifact,
    save_model,
    set_metadata,
)

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

FP16_MAX = 65504.0
# Smaller magnitudes are raised to this, the smallest number of fp16, so that an epsilon does not become a zero divisor.
FP16_TINY = 2.0**-24


def convert_fp16(source: Path | str, path: Path | str, *, keep_fp32: tuple[str, ...] = ()) -> Artifact:
    """Write the fp32 ONNX file `source` as fp16 at `path`; metadata and the fp32 inputs and outputs are kept.

    `keep_fp32` names operator types that stay in fp32, besides those that have no fp16 form (Resize, TopK, ...).
    A weight beyond fp16's range is an `ExportError` that names it; values that overflow only while running show in
    the parity check after this hop.
    """
    if reason := missing_package("onnxconverter_common", "train"):
        raise ExportError(f"{path}: fp16 needs {reason}")
    from onnxconverter_common.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = load_model(source)
    if (found := graph_precision(model)) != "fp32":
        raise ExportError(f"{source}: is {found} already; give the fp32 file")
    blocked = {*DEFAULT_OP_BLOCK_LIST, *keep_fp32}
    for tensor, worst, node in _overflows(model, blocked):
        raise ExportError(
            f"{source}: {tensor!r} of node {node.name!r} ({node.op_type}) holds {worst:.4g}, beyond fp16's "
            f"{FP16_MAX:g}; keep {node.op_type} in fp32 (keep_fp32) or leave this model in fp32"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
        model = convert_float_to_float16(
            model,
            min_positive_val=FP16_TINY,
            max_finite_val=FP16_MAX,
            keep_io_types=True,
            op_block_list=sorted(blocked),
        )
    set_metadata(model, {"precision": "fp16"})
    made_by = add_versions(model, installed_versions("onnxconverter-common"))
    save_model(model, path)
    return onnx_artifact(model, path, precision="fp16", made_by=made_by)


def _overflows(model: ModelProto, blocked: set[str]) -> Iterator[tuple[str, float, NodeProto]]:
    """Constants that do not fit fp16: name, the value, and the node that would compute with it in fp16."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes(model):
        if node.op_type == "Constant":
            constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
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
