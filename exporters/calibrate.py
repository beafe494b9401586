"""Calibration: the range in which each activation is quantized, from real samples, in bounded memory.

- "minmax": the smallest and the largest value seen; one reading of the samples.
- "entropy": the clipping threshold at which the distribution of magnitudes, cut off there and quantized to 128 levels,
  has the least Kullback-Leibler divergence from the distribution as it is (the definition of TensorRT's and ModelOpt's
  entropy calibrators: 2,048 bins of magnitude, quantized to 128 levels, zeros left out, what is cut off counted in the
  last bin). onnxruntime's own has as many bins as levels and so chooses the same threshold as min-max.
- "percentile": the magnitude that a given percentage of all values stays below.

The latter two read the samples twice: the first reading gives the largest magnitude, the second fills histograms from 0
to there, so that the order of the samples and how they are cut into batches do not matter. What is kept is one
histogram a tensor, `HISTOGRAM_BYTES` each, and the activations of one batch, however many images there are.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from exporters.artifact import ExportError, IOSpec
from exporters.calibration_samples import CalibrationSamples
from exporters.onnx_file import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

Method = Literal["minmax", "entropy", "percentile"]
# Lowest and highest value of a tensor, float32 of shape (1,) each, as onnxruntime's quantizer takes them.
Ranges = Mapping[str, tuple[np.ndarray, np.ndarray]]

PERCENTILE = 99.99
BINS = 2048
LEVELS = 128
HISTOGRAM_BYTES = BINS * np.dtype(np.int64).itemsize
# What a bin that the quantized distribution leaves empty counts as, in values: a divergence must stay finite.
_EMPTY = 1e-4


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration found. `histogram_bytes` is what all histograms together took (0 for min-max), and
    `batch_bytes` the activations of the largest batch; neither grows with `samples`."""

    method: Method
    ranges: Ranges
    samples: int
    sha256: str
    histogram_bytes: int
    batch_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.method} on {self.samples} samples, {len(self.ranges)} tensors; memory: {self.histogram_bytes:,} "
            f"bytes of histograms and {self.batch_bytes:,} bytes of activations, however many samples"
        )


def calibrate(
    model: ModelProto,
    batches: Iterable[np.ndarray],
    *,
    spec: IOSpec,
    operators: Iterable[str],
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    where: str,
) -> Calibration:
    """The ranges of every float32 activation that a node of one of `operators` reads or makes.

    `batches` yields float32 arrays of the model's one input `spec`; for "entropy" and "percentile" it is read twice and
    must give the same both times. Bad samples, and activations that are not finite, are an `ExportError`.
    """
    assert method in get_args(Method), method
    tensors = _activations(model, frozenset(operators))
    samples = CalibrationSamples(batches, spec, where=where)
    extremes, batch_bytes = _extremes(model, tensors, samples, where)
    samples.check()
    histogram_bytes = 0
    ranges = extremes
    if method != "minmax":
        again = CalibrationSamples(batches, spec, where=where)
        peaks = {name: float(max(abs(low[0]), abs(high[0]))) for name, (low, high) in extremes.items()}
        try:
            histograms = _histograms(model, peaks, again, where)
        except ExportError:
            if again.count:
                raise
            histograms = {}
        if again.sha256 != samples.sha256:
            raise ExportError(
                f"{where}: {method} reads the calibration samples twice and got other samples the second time; give a "
                "list, or a stream that starts again"
            )
        histogram_bytes = len(histograms) * HISTOGRAM_BYTES
        ranges = {}
        for name, (low, high) in extremes.items():
            width = peaks[name] / BINS
            threshold = np.float32(
                entropy_threshold(histograms[name], width)
                if method == "entropy"
                else percentile_threshold(histograms[name], width, percentile)
            )
            ranges[name] = (np.maximum(low, -threshold), np.minimum(high, threshold))
    return Calibration(
        method=method,
        ranges=ranges,
        samples=samples.count,
        sha256=samples.sha256,
        histogram_bytes=histogram_bytes,
        batch_bytes=batch_bytes,
    )


def histogram(values: np.ndarray, peak: float) -> np.ndarray:
    """int64 (BINS,): how many magnitudes fall into each of `BINS` equal bins from 0 to `peak`, which none exceeds."""
    if peak == 0:
        counts = np.zeros(BINS, np.int64)
        counts[0] = values.size
        return counts
    places = (np.abs(values).ravel() * np.float64(BINS / peak)).astype(np.int64)
    return np.bincount(np.minimum(places, BINS - 1), minlength=BINS)


def percentile_threshold(counts: np.ndarray, width: float, percentile: float) -> float:
    """The upper edge of the bin in which the given share of all magnitudes is reached."""
    reached = np.cumsum(counts)
    return float(np.searchsorted(reached, percentile / 100 * reached[-1]) + 1) * width


def entropy_threshold(counts: np.ndarray, width: float) -> float:
    """The threshold, a whole number of bins from `LEVELS` to all, of least divergence; of equal ones the largest."""
    if not counts[1:].any():
        return len(counts) * width
    divergence = divergences(counts)
    # Sums in another order differ in the last digits; equal divergences must still count as equal.
    best = np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]
    return float(LEVELS + best) * width


def divergences(counts: np.ndarray) -> np.ndarray:
    """float64 (bins - LEVELS + 1,): the Kullback-Leibler divergence for a threshold after bin LEVELS, LEVELS + 1, ...

    For a threshold after bin i, the reference P is the first i bins with all that lies above added to bin i. Q is the
    first i bins merged into `LEVELS` levels, the count of each spread evenly over its bins that P does not leave empty.
    Both are normalized. Infinite where less than half of the counts lie below the threshold: with all mass added to one
    bin, P and Q would be equal, and say nothing.
    """
    histogram = counts.astype(np.float64)
    # Zeros, which a ReLU makes in masses, cost nothing at any scale; the first bin counts as its neighbour.
    histogram[0] = histogram[1]
    ends = np.arange(LEVELS, len(counts) + 1)
    edges = _level_edges(len(counts))
    sums = np.concatenate([[0.0], np.cumsum(histogram)])
    filled = np.concatenate([[0], np.cumsum(histogram > 0)])
    total, below = sums[-1], sums[ends]
    above, last = total - below, histogram[ends - 1]
    level = np.diff(sums[edges], axis=1)
    bins = np.diff(filled[edges], axis=1)
    bins[:, -1] += (last == 0) & (above > 0)
    spread = np.where(level > 0, level / np.maximum(bins, 1), _EMPTY)
    reference = level.copy()
    reference[:, -1] += above
    own = np.concatenate([[0.0], np.cumsum(_times_log(histogram))])[ends] - _times_log(last) + _times_log(last + above)
    cross = (reference * np.log(spread)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (own - cross) / total - np.log(total) + np.log(below)
    return np.where(2 * below >= total, found, np.inf)


@functools.cache
def _level_edges(bins: int) -> np.ndarray:
    """int64 (bins - LEVELS + 1, LEVELS + 1): where each of the levels begins and ends, for every threshold."""
    return np.arange(LEVELS, bins + 1)[:, None] * np.arange(LEVELS + 1) // LEVELS


def _times_log(counts: np.ndarray) -> np.ndarray:
    return counts * np.log(np.where(counts > 0, counts, 1.0))


def _activations(model: ModelProto, operators: frozenset[str]) -> list[str]:
    """Float32 tensors that nodes of these operators read or make, weights left out, in the order of computation."""
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    weights = {tensor.name for tensor in graph.initializer}
    named = (name for node in graph.node if node.op_type in operators for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(named) if kinds.get(name) == TensorProto.FLOAT and name not in weights]


def _extremes(
    model: ModelProto, tensors: Sequence[str], samples: CalibrationSamples, where: str
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """Lowest and highest value of each tensor, reduced inside the graph, so that no activation leaves it."""
    from onnx import ModelProto, helper

    reduced = ModelProto()
    reduced.CopyFrom(model)
    names: list[str] = []
    for tensor in tensors:
        for operator in ("ReduceMin", "ReduceMax"):
            names.append(f"edgestill:{operator}:{tensor}")
            reduced.graph.node.append(helper.make_node(operator, [tensor], [names[-1]], names[-1], keepdims=0))
        # An operator that only counts: the number of elements, for the memory that a batch takes.
        names.append(f"edgestill:Size:{tensor}")
        reduced.graph.node.append(helper.make_node("Size", [tensor], [names[-1]], names[-1]))
    session = open_session(reduced, names, where=where)
    lowest = np.full(len(tensors), np.inf, np.float32)
    highest = np.full(len(tensors), -np.inf, np.float32)
    batch_bytes = 0
    for feeds in samples:
        with explained(where):
            found = session.run(names, feeds)
        # np.minimum and np.maximum hand NaN on.
        lowest = np.minimum(lowest, np.array(found[0::3], np.float32))
        highest = np.maximum(highest, np.array(found[1::3], np.float32))
        batch_bytes = max(batch_bytes, 4 * int(sum(found[2::3])))
    finite = np.isfinite(lowest) & np.isfinite(highest)
    if not finite.all():
        raise ExportError(
            f"{where}: {tensors[int(np.argmin(finite))]} holds NaN or infinity on calibration samples; mend the model"
        )
    return {name: (lowest[i : i + 1], highest[i : i + 1]) for i, name in enumerate(tensors)}, batch_bytes


def _histograms(
    model: ModelProto, peaks: Mapping[str, float], samples: CalibrationSamples, where: str
) -> dict[str, np.ndarray]:
    """The histogram of magnitudes of each tensor of `peaks`."""
    given = {value.name for value in model.graph.input}
    made = [name for name in peaks if name not in given]
    session = open_session(model, made, where=where)
    counts = {name: np.zeros(BINS, np.int64) for name in peaks}
    for feeds in samples:
        with explained(where):
            found = session.run(made, feeds)
        for name, values in (*zip(made, found, strict=True), *feeds.items()):
            if name in counts:
                counts[name] += histogram(values, peaks[name])
    return counts


def open_session(model: ModelProto, outputs: Sequence[str], *, where: str) -> Any:
    """An onnxruntime session on the CPU without graph optimizations, so that each tensor of `outputs` exists."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort
    from onnx import ModelProto, ValueInfoProto

    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with explained(where):
        return ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def explained(where: str, *, doing: str = "quantize") -> Iterator[None]:
    """Turns what onnxruntime raises into one line."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ExportError(f"{where}: onnxruntime could not {doing} it ({reason})") from error
