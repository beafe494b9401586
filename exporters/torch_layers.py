"""Time in each layer of a torch module, by torch.profiler. Imported only where torch is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from exporters.base import LayerSamples

PREFIX = "layer::"


def layer_times(module: nn.Module, infer: Callable[[], object], runs: int, *, cuda: bool) -> list[LayerSamples]:
    """(path, class, nanoseconds of each of `runs` calls) for every module without children that `infer` calls.

    On a GPU the time of its kernels, else wall clock; a module called more than once in a pass has the sum of its
    calls. The module keeps no hook.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # else it prints that it started, and an error where there is no GPU
    leaves = {name: part for name, part in module.named_modules() if not list(part.children())}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    times: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as hooks:
        for name, part in leaves.items():
            for handle in _watch(name, part):
                hooks.callback(handle.remove)
        infer()  # the profiler's own first call is not a measurement
        with profile(activities=activities, acc_events=True) as found:
            for _ in range(runs):
                infer()
            if cuda:
                torch.cuda.synchronize()
    for event in found.events() or ():
        if event.name.startswith(PREFIX) and str(event.device_type).endswith("CPU"):
            microseconds = event.device_time_total if cuda else event.cpu_time_total
            times.setdefault(event.name.removeprefix(PREFIX), []).append((event.time_range.start, 1000 * microseconds))
    made = []
    for name, part in leaves.items():
        calls = np.array([duration for _, duration in sorted(times.get(name, []))])
        if len(calls) and len(calls) % runs == 0:  # otherwise its calls depend on something and no run is like another
            made.append((name, type(part).__name__, np.rint(calls.reshape(runs, -1).sum(1)).astype(np.int64)))
    return made


def _watch(name: str, part: nn.Module) -> list[Any]:
    """Hooks that put every call of `part` into a range of the profiler's."""
    open_ranges: list[Any] = []

    def begin(*_: Any) -> None:
        open_ranges.append(record_function(PREFIX + name))
        open_ranges[-1].__enter__()

    def end(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return [part.register_forward_pre_hook(begin), part.register_forward_hook(end, always_call=True)]
