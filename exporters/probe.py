"""What only a fresh process can tell: how long loading and the first inference take, and peak memory from outside.

Called by name in a new process; the request and the answer are plain JSON.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from exporters import MODULE_RUNTIMES, RUNTIMES
from exporters.artifact import ExportError, IOSpec
from exporters.base import Runner


def cold_start(request: dict[str, Any]) -> dict[str, Any]:
    """Open a model, infer once, then `repeats` times more (3); times in milliseconds of wall clock.

    A file: `{"runtime": "openvino", "path": "m.onnx", "threads": 1, "shape": [1, 3, 32, 32]?, "device"?}`; `shape`
    fills open sizes, `{"name": [...], ...}` those of several inputs.
    A module: `{"runtime": "torch" or "torch-compile", "builder": "package.module:function", "args": {...},
    "shape": [...], "threads": 1, "precision"?, "channels_last"?, "device"?}`, where the function, called with the args,
    returns the `nn.Module`.

    Returns `load_ms` (from nothing imported to ready, building a torch module included), `first_ms`, `next_ms` (the
    fastest of the further calls) and `device_memory`: bytes on the device by the runtime's own counters with their
    `total_bytes`, None where it has none or the device is the CPU. Inputs are zeros: the time of dense networks does
    not depend on values.
    """
    start = time.perf_counter_ns()
    runner = _torch_runner(request) if request["runtime"] in MODULE_RUNTIMES else _file_runner(request)
    with runner:
        load_ms = _since_ms(start)
        feeds = {spec.name: np.zeros(_sizes(spec), spec.dtype) for spec in runner.inputs}
        times = []
        for _ in range(1 + request.get("repeats", 3)):
            start = time.perf_counter_ns()
            runner(feeds)
            runner.synchronize()
            times.append(_since_ms(start))
        return {
            "load_ms": load_ms,
            "first_ms": times[0],
            "next_ms": min(times[1:], default=None),
            "device_memory": _device_memory(runner),
        }


def _device_memory(runner: Any) -> dict[str, int | None] | None:
    ask = getattr(runner, "memory", None)
    found = None if ask is None else ask()
    return None if found is None else {**vars(found), "total_bytes": found.total_bytes}


def _file_runner(request: dict[str, Any]) -> Runner:
    from exporters import open_runner

    shape = request.get("shape") or ()
    shapes = {name: tuple(sizes) for name, sizes in shape.items()} if isinstance(shape, dict) else tuple(shape)
    return open_runner(
        request["runtime"],
        request["path"],
        threads=request["threads"],
        device=request.get("device", "cpu"),
        shapes=shapes or None,
    )


def _torch_runner(request: dict[str, Any]) -> Runner:
    module = _attribute(request["builder"])(**request.get("args", {}))
    return _attribute(RUNTIMES[request["runtime"]])(
        module,
        threads=request["threads"],
        device=request.get("device", "cpu"),
        precision=request.get("precision", "fp32"),
        channels_last=request.get("channels_last", False),
        input_shape=tuple(request["shape"]),
    )


def _attribute(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module_name), attribute)


def _sizes(spec: IOSpec) -> tuple[int, ...]:
    if spec.dynamic:
        raise ExportError(f"probe: input {spec} has open sizes; give its shape")
    return tuple(int(size) for size in spec.shape)


def _since_ms(start_ns: int) -> float:
    return (time.perf_counter_ns() - start_ns) / 1e6
