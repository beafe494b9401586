"""Where the time of an inference goes: each layer by the runtime's own profiler, slowest first.

A runner that can tell has a method `profile_layers(feeds, runs)`, which returns (name, operator, int64 nanoseconds) of
every layer that ran. Counters cost time: what the layers add up to is stated beside the latency without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from profiles.clock import Clock, PerfCounter
from profiles.errors import ProfileError
from profiles.runner import Feeds, Runner

RUNS = 50


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: `ms` is the median over `n` runs; `share` of what all layers take together, 0 to 1."""

    name: str
    operator: str
    ms: float
    share: float
    n: int


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """All layers, slowest first. `layers_ms` is their sum, `inference_ms` the median of an inference without counters.

    Where the sum is smaller, time is spent between layers or in layers that the runtime fuses away; where it is larger,
    counting was dear.
    """

    layers: tuple[Layer, ...]
    layers_ms: float
    inference_ms: float

    def operators(self) -> list[dict[str, Any]]:
        """Each kind of operator, slowest first: `operator`, `calls` (layers of that kind), `ms`, `share`."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(layer.operator, []).append(layer)
        rows = [
            {
                "operator": operator,
                "calls": len(layers),
                "ms": sum(layer.ms for layer in layers),
                "share": sum(layer.share for layer in layers),
            }
            for operator, layers in found.items()
        ]
        return sorted(rows, key=lambda row: -row["ms"])

    def row(self, most: int | None = None) -> dict[str, Any]:
        """JSON: the sums, the operators, and the `most` slowest layers (all without)."""
        return {
            "layers_ms": self.layers_ms,
            "inference_ms": self.inference_ms,
            "operators": self.operators(),
            "layers": [vars(layer) for layer in self.layers[:most]],
        }


def profile_layers(runner: Runner, feeds: Feeds, *, runs: int = RUNS, clock: Clock | None = None) -> LayerProfile:
    """Profile an opened runner on `feeds`; raises ProfileError, one line, for a runtime without such a profiler."""
    assert runs >= 1, runs
    ask: Callable[[Feeds, int], Iterable[tuple[str, str, np.ndarray]]] | None = getattr(runner, "profile_layers", None)
    if ask is None:
        raise ProfileError(
            f"{runner.name}: this runtime does not tell the time of each layer; use another for --layers"
        )
    clock = clock or PerfCounter()
    infer = runner.prepare(feeds)
    times = []
    for number in range(runs + max(3, runs // 5)):
        start = clock.now_ns()
        infer()
        runner.synchronize()
        if number >= max(3, runs // 5):
            times.append(clock.now_ns() - start)
    found = [(name, operator, samples) for name, operator, samples in ask(feeds, runs) if len(samples)]
    if not found:
        raise ProfileError(f"{runner.name}: its profiler named no layer; leave out --layers")
    medians = [float(np.median(samples)) / 1e6 for _, _, samples in found]
    total = sum(medians)
    layers = [
        Layer(name=name, operator=operator, ms=ms, share=ms / total if total else 0.0, n=len(samples))
        for (name, operator, samples), ms in zip(found, medians, strict=True)
    ]
    return LayerProfile(
        layers=tuple(sorted(layers, key=lambda layer: -layer.ms)),
        layers_ms=total,
        inference_ms=float(np.median(times)) / 1e6,
    )
