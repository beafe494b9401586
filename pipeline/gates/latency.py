"""Checks that read latency: speed-up, p50, p90 and throughput. Device time decides; batch and threads must match."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.gates.intervals import GATE_CONFIDENCE, Interval, samples_by_width
from pipeline.gates.judge import Evidence, UnmeasuredError, comparisons, measured, subject_of
from pipeline.gates.latency_evidence import block_median_bounds
from pipeline.gates.rules import Limit, Rule

KIND = "device"
MIN_BLOCKS = 30
MIN_SAMPLES = {"p90": 64, "p99": 662}


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
        ours, theirs = theirs, ours
    # The bootstrap takes rounds as independent. Order statistics of the rounds' ratios that allow for their
    # correlation stand beside it, and the more careful bound decides.
    found, worth = block_median_bounds([math.log(b / a) for a, b in zip(ours, theirs, strict=False)])
    if found is None:
        raise UnmeasuredError(f"the {blocks} blocks of {name} and {other} hang together like {worth}; measure longer")
    low, high = math.exp(found.lower), math.exp(found.upper)
    bounds = Interval(value=float(ratio), lower=min(float(lower), low), upper=max(float(upper), high))
    more = samples_by_width(bounds, blocks, limit.value)
    note = _load(subject, _hanging(blocks, worth, "blocks"))
    return Evidence(interval=bounds, unit="x", n=blocks, more=more, against=other, counted="blocks", note=note)


def _load(subject: Mapping[str, Any], more: str = "") -> str:
    entry = latency_of(subject)
    touched, blocks = entry.get("contaminated_blocks") or 0, entry.get("blocks") or 0
    load = f"{touched} of {blocks} blocks ran beside other load" if touched else ""
    return "; ".join(part for part in (more, load) if part)


def _hanging(n: int, worth: float, what: str) -> str:
    """What a check says of autocorrelation; nothing where as good as none was found."""
    return f"its {n:,} {what} hang together like {int(worth):,} independent ones" if worth < 0.9 * n else ""


def _median(report: Mapping[str, Any], subject: Mapping[str, Any]) -> tuple[Interval, int, str]:
    """p50 by the bounds recorded from the raw latencies; of an older report, from the block medians of any
    side-by-side measurement of the subject."""
    value, name = _milliseconds(subject, "p50_ms"), subject["name"]
    entry = latency_of(subject)
    found, blocks = (entry.get("tails") or {}).get("p50"), entry.get("blocks")
    if found is not None and isinstance(blocks, int):
        if blocks < MIN_BLOCKS:
            raise UnmeasuredError(f"{blocks} blocks of latency are too few; {MIN_BLOCKS} are needed (profile.blocks)")
        bounds, worth = _recorded(subject, found, value, "p50")
        return bounds, blocks, _hanging(int(entry["n"]), worth, "queries")
    sides = (("subject", {"subject": name}), ("against", {"against": name}))
    rows = [(row, side) for side, key in sides for row in comparisons(report, "latency", latency_kind=KIND, **key)]
    if not rows:
        raise UnmeasuredError(f"no block medians of {name} were recorded, so its latency has no interval")
    values = _blocks(*rows[0])
    if len(values) < MIN_BLOCKS:
        raise UnmeasuredError(f"{len(values)} blocks of latency are too few; {MIN_BLOCKS} are needed (profile.blocks)")
    bounds, worth = block_median_bounds(values)
    if bounds is None:
        raise UnmeasuredError(f"the {len(values)} blocks of {name} hang together like {worth}; measure longer")
    interval = Interval(value=value, lower=min(bounds.lower, value), upper=max(bounds.upper, value))
    return interval, len(values), _hanging(len(values), worth, "blocks")


def decide_latency_p50(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """The median, by order statistics of the block medians."""
    bounds, blocks, hanging = _median(report, subject)
    more = samples_by_width(bounds, blocks, limit.value)
    note = _load(subject, hanging)
    return Evidence(interval=bounds, unit="ms", n=blocks, more=more, counted="blocks", note=note)


def decide_latency_p90(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    return _percentile(report, subject, limit, "p90")


def decide_latency_p99(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    return _percentile(report, subject, limit, "p99")


def _percentile(report: Mapping[str, Any], subject: Mapping[str, Any], limit: Limit, name: str) -> Evidence:
    """A percentile by order statistics of as many independent queries as the recorded ones are worth.

    Where that was not recorded (an older report), by MLPerf's bound, which takes queries as independent, and says so.
    """
    entry = latency_of(subject)
    n, least = entry.get("n"), MIN_SAMPLES[name]
    if not isinstance(n, int) or n < least:
        raise UnmeasuredError(f"{n} latencies of {subject['name']} are too few for {name}; {least} are needed")
    value = _milliseconds(subject, f"{name}_ms")
    found = (entry.get("tails") or {}).get(name)
    if found is None:
        return _taken_as_independent(report, subject, limit, name)
    bounds, worth = _recorded(subject, found, value, name)
    more = samples_by_width(bounds, n, limit.value)
    note = _load(subject, _hanging(n, worth, "queries"))
    return Evidence(interval=bounds, unit="ms", n=n, more=more, counted="queries", note=note)


def _recorded(subject: Mapping[str, Any], found: Mapping[str, Any], value: float, name: str) -> tuple[Interval, int]:
    """The bounds of a percentile in an entry of `tails`, and how many independent queries they rest on."""
    upper, lower, worth = (found.get(key) for key in ("upper_ms", "lower_ms", "n_effective"))
    n = latency_of(subject).get("n")
    if type(worth) is not int or not isinstance(n, int) or not 0 < worth <= n:
        raise UnmeasuredError(f"the independence of the latencies of {subject['name']} was not checked")
    if upper is None or lower is None:
        why = f"{n:,} queries of {subject['name']} are worth {worth:,} independent ones"
        raise UnmeasuredError(f"{why}, too few or too bursty to bound {name}; measure longer")
    if not all(isinstance(x, (int, float)) and math.isfinite(x) and x > 0 for x in (upper, lower)):
        raise UnmeasuredError(f"the bounds of {name} of {subject['name']} are not positive numbers")
    return Interval(value=value, lower=min(float(lower), value), upper=max(float(upper), value)), worth


def _taken_as_independent(report: Mapping[str, Any], subject: Mapping[str, Any], limit: Limit, name: str) -> Evidence:
    entry, value = latency_of(subject), _milliseconds(subject, f"{name}_ms")
    upper, lower = _milliseconds(subject, f"{name}_bound_ms"), entry.get(f"{name}_lower_ms")
    if not isinstance(lower, (int, float)):
        try:
            lower = _median(report, subject)[0].lower
        except UnmeasuredError:
            lower = 0.0  # without blocks the check can pass on its upper bound, but never be proven to fail
    bounds = Interval(value=value, lower=min(float(lower), value), upper=max(upper, value))
    note = _load(subject, "its queries are taken as independent")
    more = samples_by_width(bounds, int(entry["n"]), limit.value)
    return Evidence(interval=bounds, unit="ms", n=int(entry["n"]), more=more, counted="queries", note=note)


def decide_deadline_misses(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """The share of queries slower than `deadline_ms`, by bounds that allow for bursts."""
    tables = latency_of(subject).get("late") or ()
    table = next((t for t in tables if t.get("deadline_ms") == rule.deadline_ms), None)
    if table is None:
        raise UnmeasuredError(
            f"misses of {rule.deadline_ms:g} ms of {subject['name']} were not counted; put the rule into the recipe"
        )
    counts = [table.get(key) for key in ("count", "n", "n_effective", "longest_run")]
    if any(type(x) is not int or x < 0 for x in counts) or not 0 < table["n_effective"] <= table["n"] >= table["count"]:
        raise UnmeasuredError(f"the missed deadlines of {subject['name']} are not counts")
    n, share = table["n"], table["count"] / table["n"]
    lower, upper = table.get("lower"), table.get("upper")
    if not all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in (lower, upper)):
        raise UnmeasuredError(f"the missed deadlines of {subject['name']} have no bounds")
    bounds = Interval(value=share, lower=min(float(lower), share), upper=max(float(upper), share))
    runs = f"{table['longest_run']} at most one after the other" if table["count"] else "none was missed"
    note = _load(subject, "; ".join(part for part in (runs, _hanging(n, table["n_effective"], "queries")) if part))
    more = samples_by_width(bounds, n, limit.value)
    return Evidence(interval=bounds, unit="fraction", n=n, more=more, counted="queries", note=note)


def decide_throughput(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Images a second; its relative bounds are those of the median latency, turned over."""
    value = measured(subject, "throughput_per_s")
    median, blocks, hanging = _median(report, subject)
    lower, upper = value * median.value / median.upper, value * median.value / median.lower
    bounds = Interval(value=value, lower=lower, upper=upper)
    more = samples_by_width(bounds, blocks, limit.value)
    note = _load(subject, hanging)
    return Evidence(interval=bounds, unit="/s", n=blocks, more=more, counted="blocks", note=note)
