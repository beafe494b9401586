"""Any ONNX file of an image network as an fp32 file of ours: one file, one float32 input of fixed size, opset 13 or
later, its constants folded and its weights where quantizers look for them. What cannot be is refused with its node.

Functions of the model's own are inlined, weights beside the file are taken in, weights among the inputs are inputs no
longer, older operator sets are raised, constants are folded and BatchNorm joins its convolution (by onnxruntime's basic
optimizations, which write standard operators). The result is run beside the original on a real batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import Artifact, ExportError, IOSpec, installed_versions
from exporters.base import Feeds, Shapes, fix_shapes, missing_package
from exporters.calibrate import explained
from exporters.half_graph import constants_as_weights
from exporters.inspect_onnx import VENDOR_DOMAINS, refuse_unknown_operators
from exporters.layer_names import name_nodes
from exporters.onnx_file import (
    WEIGHTED_OPS,
    add_versions,
    first_line,
    graph_precision,
    io_specs,
    load_model,
    nodes,
    onnx_artifact,
    save_model,
    set_metadata,
)
from exporters.opset import check_same, opset_of, to_opset

if TYPE_CHECKING:
    from onnx import ModelProto

OLDEST = 13  # from here on, Q/DQ have a scale for each channel
RAISED = 17  # what older files are raised to: every runtime and edition served here takes it
LEAST_DB = 60.0  # folding reorders sums: 100 dB and more; what computes something else stays far below


def opened(source: Path | str, shapes: Shapes | None = None) -> tuple[ModelProto, IOSpec]:
    """The model, checked, and its one input with fixed sizes; an open batch becomes 1, other open sizes need `shapes`.

    Raises `ExportError`, one line, for what is no fp32 network of images that can be quantized.
    """
    where = str(source)
    model = load_model(source)
    if model.functions:
        import onnx.inliner

        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            raise ExportError(f"{where}: its functions cannot be inlined ({first_line(error)})") from error
    refuse_unknown_operators(model, where)
    for node in nodes(model):
        if node.domain in VENDOR_DOMAINS:
            raise ExportError(
                f"{where}: node {node.name or node.output[0]!r} has the operator {node.domain}::{node.op_type}, which "
                "onnxruntime alone knows; give the file as it was before onnxruntime optimized it"
            )
    if (found := graph_precision(model)) != "fp32":
        raise ExportError(f"{where}: is {found} already; give the fp32 file")
    if not any(node.op_type in WEIGHTED_OPS for node in nodes(model)):
        raise ExportError(f"{where}: nothing to quantize; it has none of {', '.join(WEIGHTED_OPS)}")
    return model, _input(model, shapes, where)


def _input(model: ModelProto, shapes: Shapes | None, where: str) -> IOSpec:
    inputs, outputs = io_specs(model)
    told = ", ".join(map(str, inputs)) or "none"
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != 4:
        raise ExportError(f"{where}: an image network has one float32 input of (N, C, H, W); this has {told}")
    for spec in outputs:
        if spec.dtype == "unknown":
            maker = next((node for node in model.graph.node if spec.name in node.output), None)
            what = f"node {maker.name or maker.output[0]!r} ({maker.op_type}) makes" if maker is not None else "is"
            raise ExportError(f"{where}: output {spec.name!r}, which {what}, is no tensor; cut the graph before it")
    spec = inputs[0]
    if shapes is None and isinstance(spec.shape[0], str) and not any(isinstance(s, str) for s in spec.shape[1:]):
        shapes = {spec.name: (1, *(int(size) for size in spec.shape[1:]))}
    (fixed,) = fix_shapes(inputs, shapes, where=where)
    if fixed.shape[1] not in (1, 3):
        raise ExportError(
            f"{where}: input {fixed} has {fixed.shape[1]} channels on axis 1; an image network takes 1 or 3 there "
            "(N, C, H, W); export it in that layout"
        )
    return fixed


def adopt(
    model: ModelProto, spec: IOSpec, path: Path | str, *, feeds: Feeds, metadata: Mapping[str, str], where: str
) -> Artifact:
    """Write what `opened` gave as fp32 at `path`, and run it beside the original on `feeds`, a real batch.

    Outputs that differ by less than `LEAST_DB`, and whatever onnxruntime does not load, are an `ExportError`.
    """
    if missing := missing_package("onnxruntime", "ort"):
        raise ExportError(f"{where}: quantizing needs {missing}")
    original = _with_fixed_input(model, spec)
    name_nodes(original)  # onnxruntime takes no two nodes of one name
    made = to_opset(original, RAISED, where=where) if opset_of(original) < OLDEST else original
    name_nodes(made)
    made = _folded(made, where)
    constants_as_weights(made)
    _state_outputs(made, original, feeds, where)
    check_same(original, made, feeds, where=where, least_db=LEAST_DB)
    set_metadata(made, {**metadata, "precision": "fp32"})
    versions = add_versions(made, installed_versions("onnx", "onnxruntime"))
    save_model(made, path)
    return onnx_artifact(made, path, precision="fp32", made_by=versions)


def _with_fixed_input(model: ModelProto, spec: IOSpec) -> ModelProto:
    """A copy whose one input has the sizes of `spec` and whose weights are no inputs."""
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name for tensor in made.graph.initializer}
    for value in [value for value in made.graph.input if value.name in weights]:
        made.graph.input.remove(value)
    for dim, size in zip(made.graph.input[0].type.tensor_type.shape.dim, spec.shape, strict=True):
        dim.dim_value = int(size)
    # Sizes that were inferred for another batch contradict the new one.
    del made.graph.value_info[:]
    made.ir_version = max(made.ir_version, 4)  # before it, weights had to be inputs
    return made


def _folded(model: ModelProto, where: str) -> ModelProto:
    """After onnxruntime's basic optimizations, which keep to standard operators; else as it was."""
    with explained(where, doing="load"), tempfile.TemporaryDirectory(prefix="edgestill-adopt-") as folder:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = load_model(options.optimized_model_filepath)
    used = {node.domain or "" for node in nodes(folded)}
    if used - {"", *(entry.domain for entry in model.opset_import)}:
        return model
    kept = [entry for entry in folded.opset_import if entry.domain in used]
    imports = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    return folded


def _state_outputs(made: ModelProto, original: ModelProto, feeds: Feeds, where: str) -> None:
    """Give the outputs the sizes that they have for this input: those of the file may name an open batch."""
    from exporters.calibrate import open_session

    names = [value.name for value in original.graph.output]
    session = open_session(original, names, where=where)
    with explained(where, doing="run"):
        results = session.run(names, dict(feeds))
    for value, result in zip(made.graph.output, results, strict=True):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in np.shape(result):
            shape.dim.add().dim_value = size
    del made.graph.value_info[:]
