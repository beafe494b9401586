"""Which artifact is put before the gate: the fastest whose accuracy rules hold on the validation split.

The choice is made on validation samples, so that the gate's test samples are looked at once. It decides nothing: the
gate may still refuse the chosen one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.gates.dense import NAMES, UNITS, measures
from pipeline.gates.ratchet import LAST
from pipeline.gates.rules import METRICS, RuleLike, parse_limit

ACCURACY_METRICS = ("accuracy", "accuracy_drop", "agreement")
MEAN_METRICS = (*NAMES, *(f"{name}_drop" for name in NAMES))
EXACT_METRICS = ("size_bytes", "peak_memory_bytes", "params", "macs")


def select(
    report: Mapping[str, Any], rules: Sequence[RuleLike], validation: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The report's `selection`: `chosen` (None without artifacts), `order` from fast to slow, and the reason in words.

    `validation` has paired counts on the validation split, as `comparisons` has them on test.
    """
    artifacts = [row for row in report["subjects"] if row["role"] == "artifact"]
    timed = sorted((p50(row), row["name"]) for row in artifacts if p50(row) is not None)
    order = [name for _, name in timed]
    by_name = {row["name"]: row for row in artifacts}
    if not order:
        return {"chosen": None, "order": [], "reason": "no artifact was measured"}
    rejected = []
    for name in order:
        broken = next((why for rule in rules if (why := breaks(by_name[name], rule, validation))), None)
        slow = no_gain(report, by_name[name]) if broken is None else None
        if slow is not None:
            other, why = slow
            if not any(breaks(by_name[other], rule, validation) for rule in rules):
                rejected.append(f"{name} passed over: {why}")
                continue
            rejected.append(f"{name} is {why}, which breaks the limits")
        if broken is None:
            passed = "the fastest artifact" + (
                " that keeps the accuracy limits on the validation split" if rejected else ""
            )
            return {"chosen": name, "order": order, "reason": "; ".join([passed, *rejected])}
        rejected.append(f"{name} passed over: {broken}")
    best = max(order, key=lambda name: by_name[name]["accuracy"]["validation"] or 0.0)
    reason = f"none keeps the limits on the validation split, so the most accurate one is judged; {'; '.join(rejected)}"
    return {"chosen": best, "order": order, "reason": reason}


def no_gain(report: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str] | None:
    """A float form on the same runtime that the int8 artifact `row` is not proven to be faster than, and the words.

    int8 costs accuracy; it is worth that only where the ratio of medians, measured side by side, is above 1 with 99 %
    confidence. None for other precisions, and where no float form was timed.
    """
    if row.get("precision") != "int8":
        return None
    for precision in ("fp32", "fp16"):
        other = f"onnx-{precision}@{row.get('runtime')}"
        form = next((found for found in report["subjects"] if found["name"] == other), None)
        if form is None or p50(form) is None:
            continue
        pair = next(
            (
                found
                for found in report.get("comparisons") or ()
                if found.get("kind") == "latency" and found.get("latency_kind") == "device"
                if (found["subject"], found["against"]) == (row["name"], other)
            ),
            None,
        )
        if pair is None and precision == "fp16":
            continue  # only fp32 is always measured beside it
        ratio, lower = (None, None) if pair is None else (pair.get("ratio"), pair.get("ratio_lower"))
        if lower is None or lower <= 1.0:
            known = "not compared side by side" if ratio is None else f"{ratio:.2f}x"
            sure = "" if lower is None else f", 99 % sure of {lower:.2f}x"
            return other, f"not faster than {other} ({known}{sure})"
    return None


def p50(row: Mapping[str, Any]) -> float | None:
    return next((entry["p50_ms"] for entry in row["latency"] if entry["kind"] == "device"), None)


def breaks(row: Mapping[str, Any], rule: RuleLike, validation: Sequence[Mapping[str, Any]]) -> str | None:
    """Why `row` would miss the rule by its point value, or None; rules on another subject, on speed or against the last
    release, which only `edgestill gate` has beside it, do not choose."""
    limit = parse_limit(rule)
    if rule.subject or rule.slice or rule.against == LAST:
        return None
    if rule.metric not in ACCURACY_METRICS + MEAN_METRICS + EXACT_METRICS:
        return None
    value = point(row, rule, limit.unit, validation)
    if value is None:
        return f"{rule.metric} was not measured"
    held = value <= limit.value if limit.direction == "max" else value >= limit.value
    where = "" if rule.metric in EXACT_METRICS else " on validation"
    return None if held else f"{rule.metric} {value:,.4g}{where}, {limit.text} asked"


def point(row: Mapping[str, Any], rule: RuleLike, unit: str, validation: Sequence[Mapping[str, Any]]) -> float | None:
    if rule.metric in EXACT_METRICS:
        return row[rule.metric]
    if rule.metric == "accuracy":
        return row["accuracy"]["validation"]
    if rule.metric in NAMES:
        accuracy, show = row["accuracy"], METRICS[rule.metric].show
        value = accuracy["validation"] if measures(rule.metric, accuracy.get("metric")) else None
        return 100 * value if value is not None and show == "pt" else value
    if rule.metric in MEAN_METRICS:
        return _mean_lost(row["name"], rule, validation)
    pair = next((p for p in validation if p["subject"] == row["name"] and p["against"] == rule.against), None)
    if pair is None or not pair["n"]:
        return None
    if rule.metric == "agreement":
        return pair["agree"] / pair["n"]
    lost = pair["only_against"] - pair["only_subject"]
    right = pair["both"] + pair["only_against"]
    if unit == "%rel":
        return 100.0 * lost / right if right else None
    return 100.0 * lost / pair["n"]


def _mean_lost(name: str, rule: RuleLike, validation: Sequence[Mapping[str, Any]]) -> float | None:
    """What the mean over the validation images lost, in the rule's unit; None when it was not compared."""
    for pair in validation:
        if measures(rule.metric, pair.get("metric")):
            factor = UNITS.get(str(pair.get("unit", "")), ("", 1.0))[1]
            if (pair["subject"], pair["against"]) == (name, rule.against):
                return -factor * pair["mean"]
            if (pair["subject"], pair["against"]) == (rule.against, name):
                return factor * pair["mean"]
    return None
