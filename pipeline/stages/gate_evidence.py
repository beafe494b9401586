"""What the gate reads beyond the figures that people read: bounds of raw latencies, and layers that compute in int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.gates.latency_evidence import evidence

KIND = "device"
INT8 = "int8_share"


def deadlines(rules: Iterable[Any]) -> list[float]:
    """The deadlines, in milliseconds, of the rules that have one."""
    return sorted({float(rule.deadline_ms) for rule in rules if rule.deadline_ms > 0})


def add_latency(subjects: Iterable[dict[str, Any]], folder: Path, rules: Iterable[Any]) -> None:
    """Put `tails`, and `late` where a rule has a deadline, into the device latency of every subject measured."""
    wanted = deadlines(rules)
    for subject in subjects:
        path = folder / f"latency-{KIND}-{subject['name']}.npy"
        for entry in subject.get("latency") or ():
            if entry["kind"] == KIND and path.exists():
                entry.update(of_timings(np.load(path, allow_pickle=False), wanted))


def of_timings(timings: np.ndarray, deadlines_ms: Iterable[float] = ()) -> dict[str, Any]:
    """The additions to a latency entry from int64 (2, n): nanoseconds and block numbers."""
    found = evidence(timings[0], timings[1], deadlines_ms)
    return {key: value for key, value in found.items() if value}


def add_int8(subjects: Iterable[dict[str, Any]], paths: Mapping[str, Path]) -> None:
    """The share of convolutions and matrix products of each ONNX artifact that compute on int8 values."""
    from exporters.inspect_onnx import describe

    known: dict[Path, Any] = {}
    for subject in subjects:
        path = paths.get(subject["name"])
        if path is None:
            continue
        if subject.get("format") != "onnx":
            if subject.get("role") == "artifact":
                subject["missing"] = {**subject["missing"], INT8: "it is counted in ONNX files only"}
            continue
        if path not in known:
            known[path] = _int8(describe, path)
        share, why = known[path]
        subject[INT8] = share
        if why:
            subject["missing"] = {**subject["missing"], INT8: why}


def _int8(describe: Any, path: Path) -> tuple[float | None, str]:
    try:
        share = describe(path)["quantized_share"]
    except ValueError as error:
        return None, f"the file does not tell: {error}"[:200]
    return (share, "") if share is not None else (None, "the file has no convolution and no matrix product")
