"""Which provider of ONNX Runtime really ran: read from its own profile of a run, node by node, and never assumed.

A session that was asked for CUDA lists it first, and still gives to the CPU what CUDA has no kernel for. A few nodes
that compute shapes are always there; convolutions and products may not be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from exporters.artifact import ExportError
from exporters.onnx_file import QUANTIZED_OPS, WEIGHTED_OPS

CPU = "CPUExecutionProvider"
# What onnxruntime's optimizer makes of them, and what the CPU is asked for in their place.
_WEIGHTED = frozenset({*WEIGHTED_OPS, *QUANTIZED_OPS, "FusedConv", "FusedGemm", "FusedMatMul", "NhwcConv"})


def assigned(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Provider -> node -> operator, of every node that ran, from the events of a session's profile."""
    found: dict[str, dict[str, str]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            told = event["args"]
            node = event["name"].removesuffix("_kernel_time")
            found.setdefault(str(told.get("provider") or "?"), {})[node] = str(told.get("op_name", "?"))
    return found


def check_ran(found: Mapping[str, Mapping[str, str]], provider: str, *, where: str) -> str:
    """Refuse a run in which `provider` computed nothing, or the CPU a convolution or product; else who ran how much."""
    counts = Counter({name: len(ran) for name, ran in found.items()})
    told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    if not counts[provider]:
        raise ExportError(
            f"{where}: asked onnxruntime for {provider}, but no node ran on it ({told or 'nothing ran'}); look at its "
            "driver and libraries, or profile on the cpu"
        )
    if provider != CPU:
        fallen = next((item for item in found.get(CPU, {}).items() if item[1] in _WEIGHTED), None)
        if fallen is not None:
            raise ExportError(
                f"{where}: asked onnxruntime for {provider}, but node {fallen[0]!r} ({fallen[1]}) ran on the CPU "
                f"({told}); give a form that {provider} has kernels for"
            )
    return told
