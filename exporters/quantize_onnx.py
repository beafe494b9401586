"""ONNX fp32 -> ONNX int8 by post-training quantization: explicit Q/DQ, ranges from real samples.

No single int8 file serves every runtime, so there are several forms:

- "portable": signed, symmetric, zero point 0, per-channel weights, float bias, Q/DQ only on the inputs of Conv, Gemm,
  MatMul and of both sides of Add. TensorRT accepts it without a warning and OpenVINO runs it at full speed; onnxruntime
  runs it on a CPU no faster than fp32.
- "cpu": unsigned asymmetric activations, signed per-channel weights. Three to four times onnxruntime's fp32 on a CPU
  with VNNI, and fast in OpenVINO; TensorRT rejects it.
- "gpu" and "trt86": the portable placement as NVIDIA's newer editions and TensorRT 8.6 want it, see
  `exporters.int8_forms`.

Ranges are found by `exporters.calibrate` (min-max unless told otherwise) and Q/DQ is placed by onnxruntime's quantizer.
What may be added when plain int8 loses too much: `exporters.equalize` before, `exporters.bias_correction` after, and
layers left in float, which `exporters.sensitivity` helps to choose.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from exporters.artifact import Artifact, ExportError, IOSpec, installed_versions
from exporters.base import missing_package
from exporters.bias_correction import correct_biases, with_biases
from exporters.calibrate import PERCENTILE, Calibration, Method, Ranges, calibrate, explained
from exporters.equalize import equalize as equalize_pairs
from exporters.int8_forms import adapted, finished
from exporters.layer_names import name_nodes, named_layers
from exporters.onnx_file import (
    WEIGHTED_OPS,
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
    from onnx import ModelProto

Form = Literal["portable", "cpu", "gpu", "trt86"]
Equalize = bool | Literal["relu6"]  # "relu6": a ReLU6 between two convolutions becomes a ReLU first
_PORTABLE_OPS = ("Conv", "Gemm", "MatMul", "Add")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An fp32 model that is ready for Q/DQ: equalized if asked, its nodes named, its ranges known.

    `kept` are the names of the nodes that stay in float; `pairs` counts those equalized, `clipped` those that a ReLU6
    forbade.
    """

    model: ModelProto
    spec: IOSpec
    calibration: Calibration
    kept: tuple[str, ...]
    pairs: int
    clipped: int


def quantize_int8(
    source: Path | str,
    path: Path | str,
    *,
    form: Form,
    batches: Iterable[np.ndarray],
    reduce_range: bool = False,
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    equalize: Equalize = False,
    bias_correction: bool = False,
    keep_fp32: Collection[str] = (),
    say: Callable[[str], object] = lambda line: None,
) -> Artifact:
    """Write the fp32 ONNX file `source` as int8 Q/DQ at `path`, calibrated on `batches`.

    `batches` yields arrays of the model's one input, preprocessed, with the model's batch size when that is static.
    They are read one at a time: once for method "minmax", twice for "entropy" and "percentile", with `bias_correction`
    once more for each layer, and once more for form "gpu"; memory is bounded by the model, one batch and one histogram
    a tensor.
    `reduce_range` gives weights 7 bits, for x86 CPUs without VNNI, where sums of 8-bit products saturate. `keep_fp32`
    names nodes, or layers as the weights are named ("stage1.conv2", or "stage1" for all in it), that stay in float.
    `say` gets a line about each step. The same file and batches give the same bytes. Bad samples, models and names are
    an `ExportError`.
    """
    settings = {"form": form, "method": method, "percentile": percentile, "equalize": equalize, "keep_fp32": keep_fp32}
    prepared = prepare(source, batches, biases=bias_correction, **settings)  # type: ignore[arg-type]
    found = prepared.calibration
    where = str(source)
    say(f"calibration: {found}")
    quantized = place(
        prepared.model, found.ranges, form=form, reduce_range=reduce_range, keep=prepared.kept, where=where
    )
    if graph_precision(quantized) != "int8":
        reason = "all are kept in fp32" if keep_fp32 else "none of its operators has constant weights"
        raise ExportError(f"{source}: nothing was quantized; {reason}")
    changes = {
        "precision": "int8",
        "form": form,
        "calibration_sha256": found.sha256,
        "calibration_samples": str(found.samples),
    }
    _check_kept(quantized, prepared.kept, where)
    # What was not asked for is not said, so that a plain file does not depend on what else there is.
    if method != "minmax":
        changes["calibration_method"] = f"percentile {percentile:g}" if method == "percentile" else method
    if equalize:
        changes["equalized_pairs"] = str(prepared.pairs)
        say(f"equalize: {prepared.pairs} pairs of convolutions, {prepared.clipped} left alone around a ReLU6")
    if bias_correction:
        corrected = correct_biases(prepared.model, quantized, batches, spec=prepared.spec, where=where)
        changes["corrected_biases"] = str(len(corrected))
        say(f"bias correction: {len(corrected)} layers")
    if prepared.kept:
        changes["kept_fp32"] = " ".join(prepared.kept)
    quantized, facts = finished(quantized, prepared.model, form, batches, where=where)
    changes |= facts
    set_metadata(quantized, changes)
    made_by = add_versions(quantized, installed_versions("onnxruntime"))
    save_model(quantized, path)
    return onnx_artifact(quantized, path, precision="int8", made_by=made_by)


def prepare(
    source: Path | str,
    batches: Iterable[np.ndarray],
    *,
    form: Form,
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    equalize: Equalize = False,
    keep_fp32: Collection[str] = (),
    biases: bool = False,
) -> Prepared:
    """Check, change and calibrate `source`, as `quantize_int8` explains; `biases` gives each layer one of its own."""
    assert form in get_args(Form), form
    if reason := missing_package("onnxruntime", "ort"):
        raise ExportError(f"{source}: int8 needs {reason}")
    model = load_model(source)
    spec = _check_model(model, source)
    model, batches = adapted(model, form, batches, spec=spec, where=str(source))
    operators = quantized_operators(form)
    kept: tuple[str, ...] = ()
    if keep_fp32 or biases:
        name_nodes(model)
        kept = named_layers(model, keep_fp32, operators, where=str(source))
    pairs = clipped = 0
    if equalize:
        equalized = equalize_pairs(model, where=str(source), relax=equalize == "relu6")
        model, pairs, clipped = equalized.model, len(equalized.pairs), equalized.clipped
    if biases:
        model = with_biases(model)
    found = calibrate(
        model, batches, spec=spec, operators=operators, method=method, percentile=percentile, where=str(source)
    )
    return Prepared(model=model, spec=spec, calibration=found, kept=kept, pairs=pairs, clipped=clipped)


def _check_model(model: ModelProto, source: Path | str) -> IOSpec:
    if (found := graph_precision(model)) != "fp32":
        raise ExportError(f"{source}: is {found} already; quantize the fp32 file")
    if not any(node.op_type in WEIGHTED_OPS for node in nodes(model)):
        raise ExportError(f"{source}: nothing to quantize; it has none of {', '.join(WEIGHTED_OPS)}")
    inputs, _ = io_specs(model)
    if len(inputs) != 1 or inputs[0].dtype != "float32":
        got = ", ".join(map(str, inputs))
        raise ExportError(f"{source}: calibration needs a model with one float32 input; it has {got}")
    return inputs[0]


def quantized_operators(form: Form) -> tuple[str, ...]:
    """The operators that get Q/DQ in a form; for "cpu" all that onnxruntime has integer kernels for."""
    if form != "cpu":
        return _PORTABLE_OPS
    with explained("int8"):
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))


def place(
    model: ModelProto,
    ranges: Ranges,
    *,
    form: Form,
    reduce_range: bool = False,
    only: Collection[str] = (),
    keep: Collection[str] = (),
    where: str,
    hide: bool = True,
) -> ModelProto:
    """The fp32 `model` with Q/DQ: of all nodes, or of the nodes `only`, but for the nodes `keep`.

    `hide`: keep runtimes from quantizing the latter after all, see `hide_kept`.
    """
    with explained(where), _quiet_logging(), tempfile.TemporaryDirectory(prefix="edgestill-int8-") as folder:
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        options: dict[str, Any] = {}
        if form != "cpu":
            options = {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # TensorRT takes the bias in float and refuses an int32 one behind a DequantizeLinear.
                "QuantizeBias": False,
                # Q/DQ between Conv and Relu would keep runtimes from fusing the two.
                "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "Add"],
            }
        data: dict[str, Any] = {name: TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()}
        quantizer = QDQQuantizer(
            model,
            True,  # per channel
            reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if form != "cpu" else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            list(only),
            list(keep),
            list(quantized_operators(form)),
            options,
        )
        quantizer.quantize_model()
        target = Path(folder) / "int8.onnx"
        quantizer.model.save_model_to_file(str(target), False)
        quantized = load_model(target)
    if hide:
        hide_kept(quantized, keep)
    return quantized


def hide_kept(model: ModelProto, keep: Collection[str]) -> None:
    """Keep onnxruntime from quantizing the nodes `keep` after all, in place.

    Its optimizer gives a float convolution or Gemm between a DequantizeLinear and a QuantizeLinear an int8 weight of
    its own making, at every level and without a word (seen in 1.31). A Clip to the limits of the quantized type, which
    changes no value, hides the DequantizeLinear.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    clips: dict[str, Any] = {}
    ordered = []
    for node in graph.node:
        read = node.input[0] if node.input else ""
        maker = makers.get(read)
        if node.name in keep and node.op_type in WEIGHTED_OPS and maker and maker.op_type == "DequantizeLinear":
            if read not in clips:
                scale, zero = (numpy_helper.to_array(tensors[name]) for name in maker.input[1:3])
                ends = np.iinfo(zero.dtype)
                bounds = []
                for end, value in (("min", ends.min), ("max", ends.max)):
                    limit = np.float32(int(value) - int(zero.item())) * np.float32(scale.item())
                    bounds.append(f"{read}_clip_{end}")
                    graph.initializer.append(numpy_helper.from_array(np.asarray(limit, np.float32), bounds[-1]))
                clips[read] = helper.make_node("Clip", [read, *bounds], [f"{read}_clip"], f"{read}_clip")
                ordered.append(clips[read])
            node.input[0] = clips[read].output[0]
        ordered.append(node)
    if clips:
        copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
        del graph.node[:]
        graph.node.extend(copies)


def _check_kept(model: ModelProto, keep: Collection[str], where: str) -> None:
    """Refuse a node to be kept in float that runtimes compute in int8 all the same, for the Q/DQ around it."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in reversed(model.graph.node):
        # A Relu before a QuantizeLinear is dropped, for the range does its clipping.
        behind = readers.get(node.output[0], set()) if node.op_type in ("Relu", "Clip") else {node.op_type}
        for name in node.input:
            readers.setdefault(name, set()).update(behind)
    for node in model.graph.node:
        given = {makers[name] for name in node.input if name in makers}
        taken = set().union(*(readers.get(name, set()) for name in node.output))
        if node.name in keep and given == {"DequantizeLinear"} and taken == {"QuantizeLinear"}:
            raise ExportError(
                f"{where}: keep_fp32: {node.op_type} node {node.name!r} would be int8 all the same, for its neighbours "
                "quantize all that it reads and makes; name those layers instead"
            )


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """onnxruntime logs advice on the root logger (our graph needs no preprocessing: BatchNorm is folded already).

    Without a handler, its call would also install one for the whole process.
    """
    handler, before = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)
