"""What an ONNX file of a bundle may not do: read weights from a file beside it, which the manifest does not hash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def refuse_outside_data(path: Path, where: str) -> None:
    """Raises UserError when a tensor of the model lies in another file."""
    from onnx import TensorProto

    from exporters.onnx_file import load_graph

    for tensor in tensors(load_graph(path)):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UserError(f"{where}: its tensor {tensor.name[:60]!r} lies in another file; do not use this bundle")


def tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto below a protobuf message: weights, constants and those in subgraphs and functions."""
    from onnx import TensorProto

    for field, value in message.ListFields():
        # Numbers and texts cannot hold a tensor, and a message that is one has none below it.
        if field.message_type is None:
            continue
        for part in value if hasattr(value, "__len__") and not hasattr(value, "DESCRIPTOR") else (value,):
            if isinstance(part, TensorProto):
                yield part
            else:
                yield from tensors(part)
