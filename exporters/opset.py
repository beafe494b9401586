"""An ONNX graph in another operator set: raised for what newer sets can say, lowered for an edition that stops at 17.

The conversion is onnx's own; what it cannot convert is refused with the node. `check_same` runs both graphs, because a
converted graph that is valid is not yet one that computes the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from exporters.artifact import ExportError
from exporters.base import Feeds
from exporters.onnx_file import first_line, nodes

if TYPE_CHECKING:
    from onnx import ModelProto

# The newest operator set of TensorRT 8.6, and the ONNX IR that came with it.
TRT_8 = 17
_IR_OF = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
# The same arithmetic in another order of sums gives 100 dB and more; a wrong axis or rounding mode gives next to none.
LEAST_DB = 80.0


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators; 1 where the file does not say."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def to_opset(model: ModelProto, opset: int, *, where: str) -> ModelProto:
    """The model in operator set `opset`; itself when it is there already. An operator that has no counterpart is an
    `ExportError` that names its node."""
    before = opset_of(model)
    if before == opset:
        return model
    import onnx

    source = onnx.ModelProto()
    source.CopyFrom(model)
    if opset < 18:
        _drop_new_attributes(source)
    try:
        converted = onnx.version_converter.convert_version(source, opset)
        converted.ir_version = max(_IR_OF.get(opset, model.ir_version), 7)
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:
        operator = re.search(r"(?:OpType: |for operator |Version of |for )([A-Z]\w+)", str(error))
        node = next((n for n in nodes(model) if operator and n.op_type == operator.group(1)), None)
        named = f"node {node.name or node.output[0]!r} ({node.op_type}): " if node is not None else ""
        raise ExportError(
            f"{where}: {named}opset {before} cannot be converted to {opset} ({_reason(error)}); give a file in "
            f"opset {opset}, or a model without such a node"
        ) from error
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def check_same(
    reference: ModelProto, candidate: ModelProto, feeds: Feeds, *, where: str, least_db: float = LEAST_DB
) -> None:
    """Run both graphs on `feeds` in onnxruntime, without its optimizations; unequal outputs are an `ExportError`."""
    from exporters.calibrate import explained, open_session

    outputs = [value.name for value in reference.graph.output]
    found = []
    for model in (reference, candidate):
        names = [value.name for value in model.graph.output]
        session = open_session(model, names, where=where)
        with explained(where):
            found.append(session.run(names, dict(feeds)))
    for name, expected, got in zip(outputs, *found, strict=True):
        a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
        noise, signal = ((a - b) ** 2).sum(), (a**2).sum()
        if a.shape != b.shape or not np.isfinite(noise) or noise > signal * 10 ** (-least_db / 10):
            ratio = 10 * np.log10(signal / noise) if a.shape == b.shape and noise > 0 else float("nan")
            before, after = opset_of(reference), opset_of(candidate)
            raise ExportError(
                f"{where}: opset {after} does not compute what opset {before} does: {name!r} has {ratio:.0f} dB, "
                f"at least {least_db:g} dB wanted; give a file in opset {after}"
            )


def _drop_new_attributes(model: ModelProto) -> None:
    """Attributes of opset 18 that say what 17 does anyway; the converter leaves them, and the checker refuses them."""
    for node in nodes(model):
        if node.op_type.startswith("Reduce"):
            for attribute in list(node.attribute):
                if attribute.name == "noop_with_empty_axes" and (not attribute.i or len(node.input) > 1):
                    node.attribute.remove(attribute)


def _reason(error: BaseException) -> str:
    """The converter's own words without the place in its source."""
    return re.sub(r"^\S+:\d+: \w+: Assertion `.*?` failed: ", "", first_line(error))
