"""How far two runners, or two ONNX graphs, are apart on the same samples, and at which tensor it begins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.artifact import ExportError
from exporters.base import Feeds, Runner
from exporters.onnx_file import load_model

if TYPE_CHECKING:
    from onnx import ModelProto

MATRIX = 2  # axes of scores: samples and classes


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences of a candidate from a reference over `n` samples, all outputs together.

    `scale` is the largest magnitude in the reference, for judging `max_abs`.
    `cosine` is of all outputs as one vector. `sqnr_db` is 10 log10(signal energy / error energy), infinite for equal
    outputs. `top1_flips` counts samples whose largest value of the first output changed place; None where that output
    is no row of scores a sample but a picture, in which the largest value means nothing. What is not finite in the
    candidate makes figures NaN or infinitely bad, which passes no limit.
    """

    max_abs: float
    scale: float
    mean_abs: float
    cosine: float
    sqnr_db: float
    top1_flips: int | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """JSON has no infinities and no NaN: they become null."""
        return {
            key: value if value is None or isinstance(value, int) or math.isfinite(value) else None
            for key, value in asdict(self).items()
        }


def compare(reference: Runner, candidate: Runner, feeds: Iterable[Feeds | np.ndarray]) -> Parity:
    """Run both on every one of `feeds` (leading axis: samples) and add up; one batch is in memory at a time.

    For nets with one input a plain array does. Inputs and outputs are paired by order, since runtimes may rename them.
    """
    max_abs = scale = sum_abs = dot = energy = candidate_energy = error_energy = 0.0
    values = flips = n = 0
    pictures = False
    for batch in feeds:
        expected = list(reference(_feeds(batch, [spec.name for spec in reference.inputs])).values())
        got = list(candidate(_feeds(batch, [spec.name for spec in candidate.inputs])).values())
        _check_shapes(reference, candidate, expected, got)
        with np.errstate(invalid="ignore"):
            for a, b in zip(expected, got, strict=True):
                left, right = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
                error = np.abs(left - right)
                # np.maximum hands NaN on, where Python's max would drop it.
                max_abs = float(np.maximum(max_abs, error.max(initial=0.0)))
                scale = float(np.maximum(scale, np.abs(left).max(initial=0.0)))
                sum_abs += float(error.sum())
                error_energy += float(error @ error)
                dot += float(left @ right)
                energy += float(left @ left)
                candidate_energy += float(right @ right)
                values += left.size
        pictures = pictures or expected[0].ndim > MATRIX
        flips += 0 if pictures else _flips(expected[0], got[0])
        n += len(expected[0])
    if n == 0:
        raise ExportError("parity: no samples; give at least one batch")
    return Parity(
        max_abs=max_abs,
        scale=scale,
        mean_abs=sum_abs / values,
        cosine=_cosine(dot, energy, candidate_energy),
        sqnr_db=_decibel(energy, error_energy),
        top1_flips=None if pictures else flips,
        n=n,
    )


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first tensor, in the order of computation, that is further apart than allowed.

    `sqnr_db` is that of the tensor in its worst batch: 10 log10(energy of the first graph's tensor / of the error).
    """

    node: str
    operator: str
    tensor: str
    sqnr_db: float

    def __str__(self) -> str:
        return f"{self.tensor} of node {self.node} ({self.operator}), {self.sqnr_db:.1f} dB"


def first_divergence(
    reference: Path | str, candidate: Path | str, feeds: Iterable[Feeds | np.ndarray], least_db: float
) -> Divergence | None:
    """Where two ONNX graphs of one net first fall below `least_db` of SQNR; None when they nowhere do.

    The graphs are compared at the tensors of the same name, which conversion to fp16 and Q/DQ keep; a quantized tensor
    is taken as its readers see it, after DequantizeLinear. Runs onnxruntime without graph optimizations, so that every
    tensor exists. One batch of tensors of both is in memory at a time.
    """
    models = [load_model(reference), load_model(candidate)]
    makers = [{name: node for node in model.graph.node for name in node.output if name} for model in models]
    shared = [name for name in makers[0] if name in makers[1]]
    if not shared:
        raise ExportError(f"{reference} and {candidate} have no tensor name in common; compare files of one export")
    seen = [_as_read(model, shared) for model in models]
    sessions = [_open_with_outputs(model, names) for model, names in zip(models, seen, strict=True)]
    worst = dict.fromkeys(shared, math.inf)
    for batch in feeds:
        results = [
            session.run(names, _feeds(batch, [entry.name for entry in session.get_inputs()]))
            for session, names in zip(sessions, seen, strict=True)
        ]
        for name, a, b in zip(shared, *results, strict=True):
            worst[name] = float(np.minimum(worst[name], _sqnr_db(a, b)))
    for name in shared:
        # Written so that NaN diverges too.
        if not worst[name] >= least_db:
            node = makers[0][name]
            return Divergence(node=node.name or name, operator=node.op_type, tensor=name, sqnr_db=worst[name])
    return None


def _as_read(model: ModelProto, names: list[str]) -> list[str]:
    """For each tensor, the output of the Q/DQ pair behind it, or the tensor itself when it is not quantized.

    onnxruntime drops a Relu whose clipping the unsigned range does, and hands its name to the convolution before it:
    only behind the pair do both graphs mean the same.
    """
    quantized = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    restored = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [restored.get(quantized.get(name, ""), name) for name in names]


def _open_with_outputs(model: ModelProto, names: list[str]) -> Any:
    """A session whose outputs are the tensors `names`."""
    import os

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnx
    import onnxruntime as ort

    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _feeds(batch: Feeds | np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """The arrays of `batch` under `names`, paired by order."""
    arrays = [batch] if isinstance(batch, np.ndarray) else list(batch.values())
    if len(arrays) != len(names):
        raise ExportError(f"parity: got {len(arrays)} inputs; expected {len(names)}: {', '.join(names)}")
    return dict(zip(names, arrays, strict=True))


def _check_shapes(reference: Runner, candidate: Runner, expected: list[np.ndarray], got: list[np.ndarray]) -> None:
    shapes = [[list(array.shape) for array in arrays] for arrays in (expected, got)]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"parity: {reference.name} gives outputs of shape {shapes[0]}, {candidate.name} {shapes[1]}; "
            "compare forms of one net"
        )


def _sqnr_db(a: np.ndarray, b: np.ndarray) -> float:
    left, right = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if left.size != right.size:
        return -math.inf
    # Infinities in both make NaN, which is the verdict wanted and no news.
    with np.errstate(invalid="ignore"):
        return _decibel(float(left @ left), float((left - right) @ (left - right)))


def _flips(expected: np.ndarray, got: np.ndarray) -> int:
    rows = expected.reshape(len(expected), -1), got.reshape(len(got), -1)
    return int((rows[0].argmax(1) != rows[1].argmax(1)).sum())


def _cosine(dot: float, left: float, right: float) -> float:
    if left == right == 0:
        return 1.0
    return dot / math.sqrt(left * right) if left * right != 0 else 0.0


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    ratio = signal / noise
    # An infinite error, as fp16 overflow leaves, makes the ratio 0; NaN stays NaN.
    return -math.inf if ratio == 0 else 10 * math.log10(ratio)
