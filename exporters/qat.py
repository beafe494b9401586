"""Quantization-aware training of an ONNX file: a module to train, and the explicit Q/DQ file of what it became.

`trainable` quantizes the fp32 file as `exporters.quantize_onnx` would, and gives the torch module that computes the
same (`exporters.torch_graph`). Who trains it, on what and with which losses, is the caller's business. `export_trained`
writes the weights, biases and scales back into the Q/DQ graph: the scales in the file are those of the fake
quantization, so the file gives the module's whole numbers again, up to rounding; `agreement` counts them. Imported only
where torch is.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.artifact import Artifact, ExportError, installed_versions
from exporters.calibrate import PERCENTILE, Method, explained, open_session
from exporters.fake_quant import ActivationGrid
from exporters.int8_forms import finished
from exporters.layer_names import name_nodes
from exporters.onnx_file import add_versions, graph_precision, onnx_artifact, save_model, set_metadata
from exporters.quantize_onnx import Equalize, Form, Prepared, hide_kept, place, prepare
from exporters.torch_graph import TrainableGraph

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

_INT32 = np.iinfo(np.int32)
_SAME_VALUE = 1e-3  # of the largest magnitude: what a tap may differ from the network's own tensor, after folding


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """`module` is what is trained; `prepared` and `quantized` are the graphs that it came from, and goes back to."""

    module: TrainableGraph
    prepared: Prepared
    quantized: ModelProto
    form: Form
    source: Path


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whole numbers behind every QuantizeLinear, file against module, each given the file's own input to that point.

    `equal`: share of equal ones; `most`: the largest difference; `sqnr_db`: of the outputs, end to end.
    """

    integers: int
    equal: float
    most: int
    sqnr_db: float | None

    def to_json(self) -> dict[str, Any]:
        return {"integers": self.integers, "equal": self.equal, "most": self.most, "sqnr_db": self.sqnr_db}


def trainable(
    source: Path | str,
    batches: Iterable[np.ndarray],
    *,
    form: Form,
    reduce_range: bool = False,
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    equalize: Equalize = False,
    keep_fp32: Collection[str] = (),
    network: nn.Module | None = None,
    taps: Collection[str] = (),
) -> Trainable:
    """The fp32 file `source` on the grids that calibration on `batches` gives it, ready to be trained.

    The settings are those of `quantize_int8`. `taps`: module paths of `network`, the torch module that the file was
    exported from, whose outputs a loss looks at; each is found in the graph by its values. What cannot be trained is an
    `ExportError` that names the node.
    """
    where = str(source)
    prepared = prepare(
        source, batches, form=form, method=method, percentile=percentile, equalize=equalize, keep_fp32=keep_fp32
    )
    model = prepared.model
    name_nodes(model)
    quantized = place(
        model,
        prepared.calibration.ranges,
        form=form,
        reduce_range=reduce_range,
        keep=prepared.kept,
        where=where,
        hide=False,
    )
    if graph_precision(quantized) != "int8":
        raise ExportError(f"{where}: nothing was quantized; there is nothing to train for")
    first = next(iter(batches))
    found = _tensors_of(model, network, taps, first, where) if taps and network is not None else {}
    limit = 64 if reduce_range else 127
    module = TrainableGraph(quantized, _floats(model), limit=limit, fp16=form == "gpu", taps=found)
    return Trainable(module=module.eval(), prepared=prepared, quantized=quantized, form=form, source=Path(source))


def export_trained(
    trained: Trainable,
    path: Path | str,
    *,
    batches: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> Artifact:
    """Write the module's weights, biases and scales as explicit Q/DQ at `path`; `metadata` joins the file's own."""
    where = str(trained.source)
    quantized = written(trained)
    hide_kept(quantized, trained.prepared.kept)
    quantized, facts = finished(quantized, trained.prepared.model, trained.form, batches, where=where)
    found = trained.prepared.calibration
    changes = {
        "precision": "int8",
        "form": trained.form,
        "calibration_sha256": found.sha256,
        "calibration_samples": str(found.samples),
        **facts,
        **metadata,
    }
    if trained.prepared.kept:
        changes["kept_fp32"] = " ".join(trained.prepared.kept)
    set_metadata(quantized, changes)
    made_by = add_versions(quantized, installed_versions("onnxruntime", "torch"))
    save_model(quantized, path)
    return onnx_artifact(quantized, path, precision="int8", made_by=made_by)


def written(trained: Trainable) -> ModelProto:
    """A copy of the Q/DQ graph with the module's values. A bias that no int32 can hold is an `ExportError`."""
    from onnx import ModelProto, numpy_helper

    module = trained.module
    copy = ModelProto()
    copy.CopyFrom(trained.quantized)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}

    def put(name: str, value: np.ndarray) -> None:
        before = module.arrays[name]
        tensors[name].CopyFrom(numpy_helper.from_array(value.reshape(before.shape).astype(before.dtype), name))

    scales = {name: grid.scale.detach().cpu().numpy() for name, grid in module.grid_of.items()}
    for name, scale in scales.items():
        put(name, scale)
    for tensor, grid in module.weight_of.items():
        levels, of_weight = (part.cpu().numpy() for part in grid.levels())
        put(module.places[tensor].values, levels)
        put(module.places[tensor].scale, of_weight)
    for tensor, vector in module.vector_of.items():
        where, value = module.places[tensor], vector.detach().cpu().numpy().astype(np.float64)
        if not where.scale:
            put(where.values, value)
            continue
        read, weight = where.of
        before = module.makers[read].input[1]
        step = (scales[before] if before in scales else module.arrays[before]).astype(np.float64)
        unit = (step * module.weight_of[weight].levels()[1].cpu().numpy()).astype(np.float32)
        steps = np.rint(value / unit.astype(np.float64))
        if not (np.isfinite(steps) & (steps >= _INT32.min) & (steps <= _INT32.max)).all():
            raise ExportError(f"{trained.source}: a bias of {tensor} is too large for int32; train at a lower rate")
        put(where.scale, unit)
        put(where.values, steps)
    return copy


def agreement(trained: Trainable, path: Path | str, batches: Iterable[np.ndarray]) -> Agreement:
    """The exported file against the module in eval mode, on real samples.

    The file's graph is run step by step. Its tensors behind each Q are compared with what the module's grid makes of
    the file's own tensor before that Q, so that a rounding early in the net does not count again in every later layer.
    """
    from exporters.onnx_file import load_model
    from exporters.sensitivity import sqnr_db

    model = load_model(path)
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    quantizers = [node for node in quantizers if node.input[1] in trained.module.grid_of]
    given = model.graph.input[0].name
    names = list(dict.fromkeys([node.input[0] for node in quantizers if node.input[0] != given]))
    ends = [node.output[0] for node in quantizers]
    output = model.graph.output[0].name
    asked = [*names, *ends, output]
    session = open_session(model, asked, where=str(path))
    same = total = most = 0
    files, modules = [], []
    module = trained.module.eval()
    for batch in batches:
        with explained(str(path)):
            found = dict(zip(asked, session.run(asked, {given: batch}), strict=True))
        found[given] = batch
        with torch.no_grad():
            for node in quantizers:
                grid: ActivationGrid = module.grid_of[node.input[1]]
                mine = grid.levels(grid(torch.from_numpy(np.asarray(found[node.input[0]], np.float32)))).numpy()
                difference = np.abs(mine - found[node.output[0]].astype(np.int32))
                same, total = same + int((difference == 0).sum()), total + difference.size
                most = max(most, int(difference.max(initial=0)))
            modules.append(module(torch.from_numpy(batch)).numpy().astype(np.float64))
        files.append(found[output].astype(np.float64))
    noise = sqnr_db(np.concatenate(modules), np.concatenate(files))
    return Agreement(
        integers=total, equal=same / max(1, total), most=most, sqnr_db=noise if np.isfinite(noise) else None
    )


def _floats(model: ModelProto) -> dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    tensors = model.graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == TensorProto.FLOAT}


def _tensors_of(
    model: ModelProto, network: nn.Module, taps: Collection[str], batch: np.ndarray, where: str
) -> dict[str, str]:
    """Module path -> the tensor of the fp32 graph that holds what the module there gives, found by its values."""
    given = model.graph.input[0].name
    made = [name for node in model.graph.node for name in node.output if name]
    session = open_session(model, made, where=where)
    with explained(where):
        values = dict(zip(made, session.run(made, {given: batch}), strict=True))
    outputs: dict[str, np.ndarray] = {}

    def keep(path: str, _: Any, __: Any, output: Any) -> None:
        outputs[path] = output.detach().numpy()

    handles = [network.get_submodule(path).register_forward_hook(functools.partial(keep, path)) for path in taps]
    try:
        with torch.no_grad():
            network.eval()(torch.from_numpy(batch))
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for path, wanted in outputs.items():
        limit = _SAME_VALUE * max(float(np.abs(wanted).max()), 1e-12)
        same = [
            name
            for name, value in values.items()
            if value.shape == wanted.shape and value.dtype == wanted.dtype and np.abs(value - wanted).max() <= limit
        ]
        if not same:
            raise ExportError(
                f"{where}: the output of module {path!r} is no tensor of the exported graph, so its loss cannot be "
                "kept in this training; name the module around it, or leave the rung qat out"
            )
        found[path] = same[0]
    return found
