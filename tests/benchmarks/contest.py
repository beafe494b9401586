"""Timing the subjects of lineup.py side by side, and the head of a record; used by rivals.py and runtime_table.py."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from lineup import SEED, open_subject

from profiles.latency import measure_latency
from profiles.machine import machine


def timed(network: dict[str, Any], subjects: list[dict[str, Any]], batch: int, **how: Any) -> dict[str, Any]:
    """name -> `LatencyResult` of `subjects` in one interleaved measurement; `how` is `measure_latency`'s."""
    shape = (batch, *network["input"])
    images = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
    threads = how.pop("threads")
    with ExitStack() as stack:
        runners = {row["name"]: stack.enter_context(open_subject(row, shape, threads)) for row in subjects}
        feeds = {name: {runner.inputs[0].name: images} for name, runner in runners.items()}
        return measure_latency(runners, feeds, **how)


def portable(words: list[str]) -> str:
    """A command without the folders of the machine it ran on."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in words)


def origin(lineup: dict[str, Any]) -> dict[str, Any]:
    """The head of a record: what made it, on which machine, with which versions."""
    names = ("numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch", "torchvision")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    makers = {s["maker"]: s["version"] for n in lineup["networks"].values() for s in n["subjects"] if "version" in s}
    host = machine()
    kept = ("cpu", "cores", "flags", "governor", "memory_bytes", "load_1min", "python")
    return {
        "command": portable(["python", *sys.argv]),
        "made_by": portable(lineup["command"].split()),
        "machine": {key: host[key] for key in kept},
        "versions": versions | makers,
        "missing": lineup["missing"],
    }
