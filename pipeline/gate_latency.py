"""Checks that read latency: speed-up, p50, p90 and throughput. Device time decides; batch and threads must match."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.gate import Evidence, UnmeasuredError, comparisons, measured, subject_of
from pipeline.gate_rules import Limit, Rule
from pipeline.intervals import GATE_CONFIDENCE, Interval, median_bounds, samples_by_width

KIND = "device"
MIN_BLOCKS = 30
P90_MIN_SAMPLES = 64


def latency_of(subject: Mapping[str, Any], *, kind: str = KIND) -> Mapping[str, Any]:
    """The subject's latency entry of `kind`, or the recorded reason why there is none. Raises `UnmeasuredError`."""
    for entry in subject.get("latency") or ():
        if entry.get("kind") == kind:
            return entry
    why = (subject.get("missing") or {}).get("latency") or f"it has no {kind} latency"
    raise UnmeasuredError(f"latency of {subject['name']} was not measured: {why}")


def _milliseconds(subject: Mapping[str, Any], field: str) -> float:
    value = latency_of(subject).get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise UnmeasuredError(f"{field} of {subject['name']} is {value}, not a measurement")
    return float(value)


def baseline(report: Mapping[str, Any], subject: Mapping[str, Any], against: str) -> str:
    """The subject that `against` means for speed: `teacher` is its fastest fp32 form on the runtime of `subject`."""
    if against != "teacher":
        return str(subject_of(report, against)["name"])
    runtime = subject.get("runtime")
    forms = [
        (_milliseconds(row, "p50_ms"), str(row["name"]))
        for row in report.get("subjects") or ()
        if row.get("role") == "teacher"
        and row.get("runtime") == runtime
        and row.get("precision") == "fp32"
        and any(entry.get("kind") == KIND for entry in row.get("latency") or ())
    ]
    if not forms:
        raise UnmeasuredError(f"the teacher was not measured at fp32 on {runtime}, the runtime of {subject['name']}")
    return min(forms)[1]


def _upside_down(ratio: float, subject_ms: list[float], against_ms: list[float]) -> bool:
    """Whether the recorded ratio fits subject/against better than against/subject, by the block medians."""
    seen = math.log(_middle(against_ms) / _middle(subject_ms))
    return abs(math.log(ratio) - seen) > abs(math.log(ratio) + seen) + 0.05


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def _blocks(row: Mapping[str, Any], side: str) -> list[float]:
    values = (row.get("blocks_ms") or {}).get(side) or []
    if not all(isinstance(value, (int, float)) and math.isfinite(value) and value > 0 for value in values):
        raise UnmeasuredError(f"the block medians of {row.get(side)} are not all positive numbers")
    return [float(value) for value in values]


def decide_speedup(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """p50 of the baseline over p50 of the subject, with the block-bootstrap bounds recorded by the profiler."""
    name, other = subject["name"], baseline(report, subject, rule.against)
    straight = list(comparisons(report, "latency", subject=name, against=other, latency_kind=KIND))
    swapped = list(comparisons(report, "latency", subject=other, against=name, latency_kind=KIND))
    if not straight and not swapped:
        raise UnmeasuredError(f"the latencies of {name} and {other} were not measured side by side")
    row = (straight or swapped)[0]
    ratio, lower, upper = (row.get(key) for key in ("ratio", "ratio_lower", "ratio_upper"))
    if not all(isinstance(x, (int, float)) and math.isfinite(x) and x > 0 for x in (ratio, lower, upper)):
        raise UnmeasuredError(f"the speed-up of {name} against {other} has no interval")
    assert isinstance(ratio, (int, float)) and isinstance(lower, (int, float)) and isinstance(upper, (int, float))
    if not lower <= ratio <= upper or row.get("confidence", 0) < GATE_CONFIDENCE:
        raise UnmeasuredError(f"the interval of the speed-up of {name} against {other} is not one at 99 %")
    ours, theirs = _blocks(row, "subject"), _blocks(row, "against")
    blocks = min(len(ours), len(theirs))
    if blocks < MIN_BLOCKS:
        raise UnmeasuredError(f"{blocks} blocks of latency are too few; {MIN_BLOCKS} are needed (profile.blocks)")
    if _upside_down(ratio, ours, theirs):
        raise UnmeasuredError(f"the speed-up of {name} against {other} contradicts its own block medians")
    for entry in (latency_of(subject), latency_of(subject_of(report, other))):
        if (entry.get("batch"), entry.get("threads")) != (row.get("batch"), row.get("threads")):
            raise UnmeasuredError(f"{name} and {other} were not measured at the same batch and threads")
    if not straight:
        ratio, lower, upper = 1 / ratio, 1 / upper, 1 / lower
    bounds = Interval(value=float(ratio), lower=float(lower), upper=float(upper))
    more = samples_by_width(bounds, blocks, limit.value)
    return Evidence(
        interval=bounds, unit="x", n=blocks, more=more, against=other, counted="blocks", note=_load(subject)
    )


def _load(subject: Mapping[str, Any]) -> str:
    entry = latency_of(subject)
    touched, blocks = entry.get("contaminated_blocks") or 0, entry.get("blocks") or 0
    return f"{touched} of {blocks} blocks ran beside other load" if touched else ""


def _median(report: Mapping[str, Any], subject: Mapping[str, Any]) -> tuple[Interval, int]:
    """p50 with distribution-free bounds from the block medians of any side-by-side measurement of the subject."""
    value, name = _milliseconds(subject, "p50_ms"), subject["name"]
    sides = (("subject", {"subject": name}), ("against", {"against": name}))
    rows = [(row, side) for side, key in sides for row in comparisons(report, "latency", latency_kind=KIND, **key)]
    if not rows:
        raise UnmeasuredError(f"no block medians of {name} were recorded, so its latency has no interval")
    values = _blocks(*rows[0])
    bounds = median_bounds(values, GATE_CONFIDENCE)
    if len(values) < MIN_BLOCKS or bounds is None:
        raise UnmeasuredError(f"{len(values)} blocks of latency are too few; {MIN_BLOCKS} are needed (profile.blocks)")
    return Interval(value=value, lower=min(bounds.lower, value), upper=max(bounds.upper, value)), len(values)


def decide_latency_p50(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """The median, by order statistics of the block medians."""
    bounds, blocks = _median(report, subject)
    more = samples_by_width(bounds, blocks, limit.value)
    return Evidence(interval=bounds, unit="ms", n=blocks, more=more, counted="blocks", note=_load(subject))


def decide_latency_p90(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """The 90th percentile by MLPerf's order-statistic bound; the median's lower bound serves as its lower one."""
    entry = latency_of(subject)
    n = entry.get("n")
    if not isinstance(n, int) or n < P90_MIN_SAMPLES:
        raise UnmeasuredError(f"{n} latencies of {subject['name']} are too few for p90; {P90_MIN_SAMPLES} are needed")
    value, upper = _milliseconds(subject, "p90_ms"), _milliseconds(subject, "p90_bound_ms")
    lower = entry.get("p90_lower_ms")
    if not isinstance(lower, (int, float)):
        try:
            lower = _median(report, subject)[0].lower
        except UnmeasuredError:
            lower = 0.0  # without blocks the check can pass on its upper bound, but never be proven to fail
    bounds = Interval(value=value, lower=min(float(lower), value), upper=max(upper, value))
    return Evidence(interval=bounds, unit="ms", n=n, note=_load(subject))


def decide_throughput(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Images a second; its relative bounds are those of the median latency, turned over."""
    value = measured(subject, "throughput_per_s")
    median, blocks = _median(report, subject)
    lower, upper = value * median.value / median.upper, value * median.value / median.lower
    bounds = Interval(value=value, lower=lower, upper=upper)
    more = samples_by_width(bounds, blocks, limit.value)
    return Evidence(interval=bounds, unit="/s", n=blocks, more=more, counted="blocks", note=_load(subject))
