"""Reading and writing ONNX files: one file, no traces of the machine that made it, the same bytes every time."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.artifact import PREFIX, Artifact, ExportError, IOSpec, Precision

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

# The operators whose weights and products are most of a network; precision is judged by them.
WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZE_OPS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
QUANTIZED_OPS = ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "QLinearAdd")


def load_graph(path: Path | str) -> ModelProto:
    """Parse an ONNX file without reading weights that lie in a separate file."""
    return _load(Path(path), external=False)


def load_model(path: Path | str) -> ModelProto:
    """Parse an ONNX file with all its weights. What is no ONNX file is an `ExportError`."""
    return _load(Path(path), external=True)


def _load(path: Path, *, external: bool) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ExportError(f"{path}: {'is a folder, not an ONNX file' if path.is_dir() else 'no such file'}")
    try:
        model = onnx.load(str(path), load_external_data=external)
    except DecodeError as error:
        raise ExportError(f"{path}: not an ONNX file; it cannot be parsed") from error
    except (OSError, onnx.checker.ValidationError) as error:
        raise ExportError(
            f"{path}: its weights lie in another file that cannot be read; keep both files together"
        ) from error
    # Protobuf reads many a foreign file, an empty one included, as a message without content.
    if not model.ir_version or not model.graph.node:
        raise ExportError(f"{path}: not an ONNX file; it holds no graph")
    if (text := next(_undecoded(model), None)) is not None:
        raise ExportError(f"{path}: damaged; the text {text!r} in it is not UTF-8")
    return model


def _undecoded(message: Any) -> Iterator[bytes]:
    """Names and other texts that are not UTF-8: protobuf hands them out as bytes, which no caller is prepared for."""
    if message.DESCRIPTOR.name == "TensorProto":  # its weights are not to be copied for that
        texts = [message.name]
    else:
        texts = []
        for field, value in message.ListFields():
            values = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
            if field.type == field.TYPE_STRING:
                texts += values
            elif field.type == field.TYPE_MESSAGE:
                for inner in values:
                    yield from _undecoded(inner)
    yield from (text for text in texts if isinstance(text, bytes))


def save_model(model: ModelProto, path: Path | str) -> None:
    """Check the model and write it as one file: strip notes, check fully, write aside, then rename."""
    import onnx

    path = Path(path)
    strip_notes(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: the graph is not valid ONNX ({first_line(error)}); nothing was written") from error
    replace_bytes(path, model.SerializeToString(deterministic=True))


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` whole or not at all. Errors of the disk are left to the caller as `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.edgestill-tmp{path.suffix}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def strip_notes(model: ModelProto) -> None:
    """Remove stack traces with local paths and other notes of exporters: they leak, and they change the bytes."""
    model.doc_string = ""
    for graph in graphs(model.graph):
        graph.doc_string = ""
        _clear(graph)
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.doc_string = ""
            _clear(item)
    for function in model.functions:
        function.doc_string = ""
        _clear(function)
        for node in function.node:
            node.doc_string = ""
            _clear(node)


def _clear(message: object) -> None:
    # Older onnx has metadata_props on the model alone.
    if hasattr(message, "metadata_props"):
        del message.metadata_props[:]  # type: ignore[attr-defined]


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every graph inside it (bodies of If, Loop and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of the model, those of inner graphs included."""
    for graph in graphs(model.graph):
        yield from graph.node


def external_files(model: ModelProto) -> tuple[str, ...]:
    """Names, relative to the ONNX file, of the files that hold weights of it; none where it holds all of them."""
    tensors = [tensor for graph in graphs(model.graph) for tensor in graph.initializer]
    for node in (*nodes(model), *(node for function in model.functions for node in function.node)):
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
    found = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return tuple(sorted(found))


def set_metadata(model: ModelProto, changes: Mapping[str, str]) -> None:
    """Merge `changes`, keys without the prefix, into the metadata; written in order, so that the bytes are the same."""
    merged = {prop.key: prop.value for prop in model.metadata_props}
    merged |= {PREFIX + key: value for key, value in changes.items()}
    del model.metadata_props[:]
    for key in sorted(merged):
        model.metadata_props.add(key=key, value=merged[key])


def add_versions(model: ModelProto, versions: Mapping[str, str]) -> dict[str, str]:
    """Record the tools that made this hop beside those of the hops before; returns all of them."""
    known = {prop.key: prop.value for prop in model.metadata_props}.get(PREFIX + "versions", "{}")
    merged = json.loads(known) | dict(versions)
    set_metadata(model, {"versions": json.dumps(merged, sort_keys=True)})
    return merged


def io_specs(model: ModelProto) -> tuple[tuple[IOSpec, ...], tuple[IOSpec, ...]]:
    """Inputs and outputs; weights that old files list among the inputs are left out."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in weights)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def _spec(value: ValueInfoProto) -> IOSpec:
    from onnx import helper

    tensor = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name if tensor.elem_type else "unknown"
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return IOSpec(name=value.name, dtype=dtype, shape=shape)


def onnx_artifact(model: ModelProto, path: Path | str, *, precision: Precision, made_by: Mapping[str, str]) -> Artifact:
    """The `Artifact` of a model that was just saved at `path`."""
    inputs, outputs = io_specs(model)
    return Artifact.of_file(path, kind="onnx", precision=precision, inputs=inputs, outputs=outputs, made_by=made_by)


def graph_precision(model: ModelProto) -> Precision:
    """What the graph computes in: int8 when it has quantized operators, else the type of most of its weight bytes."""
    from onnx import TensorProto

    if any(node.op_type in (*QUANTIZE_OPS, *QUANTIZED_OPS) for node in nodes(model)):
        return "int8"
    size_of: dict[int, int] = {}
    for tensor in model.graph.initializer:
        size_of[tensor.data_type] = size_of.get(tensor.data_type, 0) + int(np.prod(tensor.dims, dtype=np.int64))
    floats = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    main = max((kind for kind in size_of if kind in (TensorProto.FLOAT, *floats)), key=size_of.__getitem__, default=1)
    return floats.get(main, "fp32")  # type: ignore[return-value]


def first_line(error: BaseException) -> str:
    """The first line of an error that says something; libraries write paragraphs."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__
