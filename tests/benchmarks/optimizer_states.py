"""What bitsandbytes' 8-bit optimizers save: bytes of optimizer state and seconds a step, also where it is nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/optimizer_states.py > artifacts/reference/optimizer-states.json

The optimizers of recipes (`pipeline.training.optimizer`) on the weights of each network, with gradients that stay as
they are: so forward and backward pass, which an optimizer does not change, are no part of the step. State bytes are
those of all tensors that the optimizer holds after a step. Steps are interleaved in blocks, each block in the reverse
order of the one before; ratios are those of the block medians, with 99 % intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from int8_linear import network

NETWORKS = ("mlperf-resnet8", "torchvision:mobilenet_v2", "mlp")
OPTIMIZERS = ("sgd", "adam", "adam8bit")
BASELINE = "adam"
BLOCKS = 30
CONFIDENCE = 0.99
LEAST_STEPS = 2  # of each optimizer in a block


def ready(name: str, optimizer: str) -> Any:
    """The optimizer of a fresh copy of the network, whose states are there: it has made a step."""
    import torch

    from pipeline.recipe_training import Training
    from pipeline.training.optimizer import make_optimizer

    module = network(name)
    made = make_optimizer(module, Training.model_validate({"optimizer": optimizer, "lr": 1e-4}))
    torch.manual_seed(1)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    made.step()
    return made


def state_bytes(optimizer: Any) -> int:
    """Of all tensors in the states, one that several parameters share counted once."""
    import torch

    held: dict[int, int] = {}
    found: list[Any] = list(optimizer.state.values())
    while found:
        value = found.pop()
        if isinstance(value, torch.Tensor):
            held[value.data_ptr()] = value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            found += value.values()
        elif isinstance(value, list | tuple):
            found += value
    return sum(held.values())


def seconds_of(optimizer: Any) -> float:
    begin = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - begin


def timed(optimizers: Mapping[str, Any], seconds: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Nanoseconds of each step, interleaved, and the block of each."""
    once = sum(min(seconds_of(each) for _ in range(3)) for each in optimizers.values())
    steps = max(LEAST_STEPS, round(seconds / BLOCKS / once))
    samples: dict[str, list[float]] = {name: [] for name in optimizers}
    order = list(optimizers)
    for _ in range(BLOCKS):
        for name in order:
            samples[name] += [1e9 * seconds_of(optimizers[name]) for _ in range(steps)]
        order.reverse()
    return {name: np.array(row) for name, row in samples.items()}, np.repeat(np.arange(BLOCKS), steps)


def measured(name: str, seconds: float) -> dict[str, Any]:
    from pipeline.training.optimizer import QUANTIZED_FROM
    from profiles.stats import ratio_of_medians

    optimizers = {kind: ready(name, kind) for kind in OPTIMIZERS}
    sizes = [p.numel() for group in optimizers[BASELINE].param_groups for p in group["params"]]
    samples, blocks = timed(optimizers, seconds)
    rows = {}
    for kind, optimizer in optimizers.items():
        # How many times as long as Adam's a step is.
        ratio = ratio_of_medians(samples[kind], blocks, samples[BASELINE], blocks, confidence=CONFIDENCE)
        rows[kind] = {
            "state_bytes": state_bytes(optimizer),
            "step_p50_ms": float(np.median(samples[kind])) / 1e6,
            "n": len(samples[kind]),
            "step_against_adam": [ratio.value, ratio.lower, ratio.upper],
        }
    return {
        "parameters": sum(sizes),
        "tensors": len(sizes),
        "weight_bytes": 4 * sum(sizes),
        "parameters_in_tensors_of_4096_values_and_more": sum(size for size in sizes if size >= QUANTIZED_FROM),
        "optimizers": rows,
    }


def main() -> None:
    import torch

    from exporters.artifact import installed_versions
    from profiles.machine import machine

    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seconds", type=float, default=6.0, help="of steps, all optimizers of a network together")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    host = machine()
    record: dict[str, Any] = {
        "command": " ".join(["OMP_NUM_THREADS=1 python tests/benchmarks/optimizer_states.py", *sys.argv[1:]]),
        "hardware": {key: host.get(key) for key in ("cpu", "cores", "load_1min")} | {"threads": 1},
        "versions": installed_versions("torch", "bitsandbytes", "numpy"),
        "confidence": CONFIDENCE,
        "blocks": BLOCKS,
        "networks": {},
    }
    for name in filter(None, asked.networks.split(",")):
        record["networks"][name] = measured(name, asked.seconds)
        print(name, record["networks"][name], file=sys.stderr, flush=True)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
