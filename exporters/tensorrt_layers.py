"""The time of each layer of a TensorRT engine, by TensorRT's own profiler, in an execution context of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from exporters.base import LayerSamples


def layer_times(
    trt: Any, engine: Any, context: Any, enqueue: Callable[[Any], None], wait: Callable[[], None], runs: int
) -> list[LayerSamples]:
    """Run `enqueue(context)` `runs` times with a profiler attached; layers as TensorRT fused them, in its order.

    TensorRT tells a layer's milliseconds once it has run. What kind a layer is stands with the engine's inspector,
    where the engine was built with details (ours are); elsewhere the operator is "layer".
    """
    times: dict[str, list[int]] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(round(ms * 1e6))

    profiler = Profiler()  # TensorRT keeps no reference to it
    context.profiler = profiler
    try:
        for _ in range(runs):
            enqueue(context)
            wait()
    finally:
        context.profiler = None
    kinds = _kinds(trt, engine, context)
    return [(name, kinds.get(name, "layer"), np.array(samples, np.int64)) for name, samples in times.items()]


def _kinds(trt: Any, engine: Any, context: Any) -> dict[str, str]:
    """Layer -> its kind, such as "CaskConvolution"."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    layers = [layer for layer in told.get("Layers", ()) if isinstance(layer, dict)]
    return {layer["Name"]: layer["LayerType"] for layer in layers if {"Name", "LayerType"} <= layer.keys()}
