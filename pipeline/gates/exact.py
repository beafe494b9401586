"""Checks of figures without an interval: one measurement, or a count of what the file holds; alone or against another.

Nothing is sampled here, so no chance is bounded: size, parameters, MACs and the share of int8 layers are counted, peak
memory is that of one fresh process, energy that of one steady measurement, and the check says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.gates.intervals import Interval
from pipeline.gates.judge import Evidence, UnmeasuredError, measured, subject_of
from pipeline.gates.latency import baseline
from pipeline.gates.rules import METRICS, Limit, Rule

NOTES = {"peak_memory_bytes": "one fresh process", "energy_j": "one steady measurement"}
RATIOS = {"size_ratio": "size_bytes", "memory_ratio": "peak_memory_bytes", "energy_ratio": "energy_j"}


def decide(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Size, parameters, MACs, energy, peak memory."""
    return _exactly(_figure(subject, rule.metric), METRICS[rule.metric].show, NOTES.get(rule.metric, ""))


def decide_ratio(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """A figure of the subject over that of another; `teacher` is its form that speed is judged against."""
    field = RATIOS[rule.metric]
    other = baseline(report, subject, rule.against)
    ratio = _figure(subject, field) / _figure(subject_of(report, other), field)
    note = f"{NOTES[field]} each" if field in NOTES else ""
    return _exactly(ratio, METRICS[rule.metric].show, note, against=other)


def decide_int8_share(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """What the file that ships does, counted layer by layer."""
    share = measured(subject, "int8_share")
    if share > 1:
        raise UnmeasuredError(f"int8_share of {subject['name']} is {share}, not a share")
    return _exactly(share, METRICS[rule.metric].show)


def _figure(subject: Mapping[str, Any], field: str) -> float:
    value = measured(subject, field)
    if value == 0:
        raise UnmeasuredError(f"{field} of {subject['name']} is 0, not a measurement")
    return value


def _exactly(value: float, unit: str, note: str = "", against: str = "") -> Evidence:
    interval = Interval(value=value, lower=value, upper=value)
    return Evidence(interval=interval, unit=unit, n=1, note=note, against=against)
