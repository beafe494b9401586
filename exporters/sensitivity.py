"""Per-layer sensitivity: what the quantization of each layer does to the output of the net, on real samples.

Two figures a layer, both the signal-to-quantization-noise ratio of the outputs against fp32, in dB:

- `alone_db`: only this layer is quantized. Low: the layer is hard to quantize.
- `rest_db`: all but this layer are quantized. What it lies above the whole net's `all_db` is what leaving it in float
  wins back.

A layer is a node that can be left in float by itself: one with weights, and but for the cpu form an addition too. In
the cpu form all else lies between the Q/DQ of its neighbours, whose noise its own is. The ranges are calibrated once,
and each of the 2 n + 1 graphs is run without graph optimizations, which gives the same figures on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.artifact import ExportError
from exporters.calibrate import PERCENTILE, Method, explained, open_session
from exporters.layer_names import layer_of, name_nodes
from exporters.onnx_file import WEIGHTED_OPS
from exporters.quantize_onnx import Equalize, Form, place, prepare, quantized_operators

SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One node; `layer` is "" where it has no weight. Infinite where quantization changes nothing."""

    node: str
    operator: str
    layer: str
    alone_db: float
    rest_db: float

    @property
    def label(self) -> str:
        """The name by which people know it, and by which `keep_fp32` takes it."""
        return self.layer or self.node

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: null stands for no noise at all."""
        return {
            "node": self.node,
            "operator": self.operator,
            "layer": self.layer,
            "alone_db": _or_null(self.alone_db),
            "rest_db": _or_null(self.rest_db),
        }


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """`layers` from the most sensitive (least `alone_db`) to the least; `all_db` is of the whole quantized net."""

    layers: tuple[LayerSensitivity, ...]
    all_db: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        return {
            "all_db": _or_null(self.all_db),
            "samples": self.samples,
            "layers": [layer.to_json() for layer in self.layers],
        }


def layer_sensitivity(
    source: Path | str,
    *,
    form: Form,
    batches: Iterable[np.ndarray],
    reduce_range: bool = False,
    method: Method = "minmax",
    percentile: float = PERCENTILE,
    equalize: Equalize = False,
    keep_fp32: Collection[str] = (),
) -> Sensitivity:
    """Rank the layers of the fp32 file `source` as `quantize_int8` would quantize them with the same settings.

    `batches` is read once more than for calibration, up to `SAMPLES` samples, which are held in memory. Layers of
    `keep_fp32` stay in float throughout and are not ranked.
    """
    prepared = prepare(
        source,
        batches,
        form=form,
        method=method,
        percentile=percentile,
        equalize=equalize,
        keep_fp32=keep_fp32,
    )
    model, kept, where = prepared.model, prepared.kept, str(source)
    name_nodes(model)
    operators = frozenset(quantized_operators(form)) & {*WEIGHTED_OPS, *(["Add"] if form != "cpu" else [])}
    chosen = [node for node in model.graph.node if node.op_type in operators and node.name not in kept]
    if not chosen:
        raise ExportError(f"{source}: no layer to rank; all are kept in fp32")
    feeds = _some(batches, SAMPLES)
    names = [output.name for output in model.graph.output]

    def outputs(graph: Any) -> np.ndarray:
        session = open_session(graph, names, where=where)
        with explained(where):
            runs = [session.run(names, {prepared.spec.name: batch}) for batch in feeds]
        return np.concatenate([np.asarray(array, np.float64).ravel() for run in runs for array in run])

    def noise(*, only: Collection[str] = (), keep: Collection[str] = ()) -> float:
        graph = place(
            model, prepared.calibration.ranges, form=form, reduce_range=reduce_range, only=only, keep=keep, where=where
        )
        return sqnr_db(reference, outputs(graph))

    reference = outputs(model)
    layers = [
        LayerSensitivity(
            node=node.name,
            operator=node.op_type,
            layer=layer_of(node),
            alone_db=noise(only=[node.name]),
            rest_db=noise(keep=[*kept, node.name]),
        )
        for node in chosen
    ]
    layers.sort(key=lambda layer: layer.alone_db)
    return Sensitivity(layers=tuple(layers), all_db=noise(keep=kept), samples=sum(map(len, feeds)))


def sqnr_db(expected: np.ndarray, got: np.ndarray) -> float:
    """10 log10(energy of `expected` / energy of the error); infinite when equal, minus infinity when broken."""
    error = float(np.sum((expected - got) ** 2))
    signal = float(np.sum(expected**2))
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 and math.isfinite(error) else -math.inf


def _some(batches: Iterable[np.ndarray], samples: int) -> list[np.ndarray]:
    """Whole batches until there are `samples` of them; at least one batch."""
    chosen: list[np.ndarray] = []
    for batch in batches:
        chosen.append(batch)
        if sum(map(len, chosen)) >= samples:
            break
    return chosen


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
