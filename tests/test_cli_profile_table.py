"""The table of profile: tails where they can be told, memory on a device where there is one; and both in a report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.cli.profile_table import show_all
from pipeline.reports.report import schema
from pipeline.stages.gate import LATENCY_KEYS, first_call
from profiles.clock import CpuSeconds
from profiles.latency import measure_latency
from profiles.runner import Feeds

SCHEMA = schema()


class Ticks:
    """A clock that is a microsecond later each time it is asked."""

    def __init__(self) -> None:
        self.now = 0

    def now_ns(self) -> int:
        self.now += 1000
        return self.now


class NoLoad:
    resolution_s = 0.01

    def read(self) -> CpuSeconds:
        return CpuSeconds(busy=0.0, own=0.0)


class Nothing:
    name, device, precision, threads = "nothing", "cpu", "fp32", 1
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    versions: dict[str, str] = {}  # noqa: RUF012

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return {}

    def prepare(self, feeds: Feeds) -> Any:
        return lambda: None

    def synchronize(self) -> None: ...


def row(queries: int) -> dict[str, Any]:
    feeds = {"nothing": {"x": np.zeros(1, np.float32)}}
    found = measure_latency(
        {"nothing": Nothing()},
        feeds,
        min_seconds=1e-6,
        min_queries=queries,
        blocks=1,
        clock=Ticks(),
        load=NoLoad(),
    )["nothing"]
    assert found.n == queries == len(found.samples_ns)
    return found.row()


@pytest.mark.parametrize(
    ("queries", "told"),
    [(63, []), (64, ["p90"]), (662, ["p90", "p99"]), (6635, ["p90", "p99"]), (6636, ["p90", "p99", "p99_9"])],
)
def test_a_percentile_is_null_below_the_queries_that_it_takes(queries: int, told: list[str]) -> None:
    found = row(queries)
    for q in ("p90", "p99", "p99_9"):
        assert (found[f"{q}_ms"] is not None) == (q in told) == (found[f"{q}_bound_ms"] is not None), q


def test_a_report_takes_the_tail_and_its_bounds() -> None:
    import jsonschema

    entry = {key: value for key, value in row(7000).items() if key in LATENCY_KEYS}
    assert {"p99_9_ms", "p99_bound_ms", "p99_9_bound_ms"} <= entry.keys()
    schema = SCHEMA | SCHEMA["$defs"]["latency"] | {"required": ["p99_9_ms"]}
    jsonschema.validate(entry, schema)
    (first,) = first_call({"first_ms": 3.0}, entry)
    jsonschema.validate(first, schema)
    assert first["p99_9_ms"] is None and first["p50_ms"] == 3.0


def subject(queries: int, memory: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "name": "a/m.onnx@nothing",
        "precision": "fp32",
        "latency": [row(queries)],
        "peak_memory_bytes": 10_000_000,
        "device_memory": memory,
        "first_ms": 2.0,
        "size_bytes": 1000,
        "missing": {},
    }


def found(*subjects: dict[str, Any]) -> dict[str, Any]:
    host = {"governor": None, "load_1min": 0.0, "cpu": "cpu", "threads": 1, "device": "cpu"}
    return {"subjects": list(subjects), "comparisons": [], "conditions": host}


def test_columns_come_with_what_was_measured(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    show_all(found(subject(64)), against="m")
    plain = capsys.readouterr().out
    assert "p90 at most" in plain and "p99" not in plain and "on device" not in plain
    show_all(found(subject(64), subject(7000, {"total_bytes": 5_000_000})), against="m")
    full = capsys.readouterr().out
    assert "p99.9" in full and "on device" in " ".join(full.split()) and "5.00 MB" in full
