"""Rules over a report's measurements -> released, refused or undecided.

Reads the report alone (counts and block medians stand in it), so a verdict can be given again anywhere. Every check is
decided by a one-sided 99 % bound against the limit itself: it passes when the unfavourable bound keeps the limit, fails
when even the favourable one breaks it, and is undecided in between. What is missing, not finite or contradicts itself
never passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.errors import RecipeError
from pipeline.gate_rules import METRICS, Limit, Rule, RuleLike, describe, parse_limit, rule_of
from pipeline.intervals import (
    GATE_CONFIDENCE,
    Interval,
    Pairs,
    exact_share,
    paired_difference,
    paired_relative_drop,
    samples_by_width,
    samples_to_decide,
)
from pipeline.quantities import show
from pipeline.registry import load

Outcome = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule decided. `value`, the bounds and `threshold` are in `unit`; `more_samples` are further ones needed."""

    rule: str
    metric: str
    subject: str
    against: str
    value: float | None
    bound_lower: float | None
    bound_upper: float | None
    threshold: float
    direction: Literal["max", "min"]
    unit: str
    outcome: Outcome
    n: int | None
    more_samples: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All checks, and what they come to: `released`, `refused` or `undecided`."""

    verdict: Literal["released", "refused", "undecided"]
    checks: tuple[Check, ...]
    sentence: str

    def gates(self) -> list[dict[str, Any]]:
        """The checks as JSON-able tables, as they stand in report.json."""
        return [asdict(check) for check in self.checks]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a decider found, in the unit of display: the interval, how many samples made it, how many more would do."""

    interval: Interval
    unit: str
    n: int
    more: int | None = None
    counted: str = "samples"
    against: str = ""
    note: str = ""


class UnmeasuredError(Exception):
    """Why a check cannot be decided; becomes the reason of an undecided check."""


def judge(report: Mapping[str, Any], rules: Iterable[RuleLike | Mapping[str, Any]] | None = None) -> Verdict:
    """Decide every rule (default: those of the report's recipe). An unreadable rule raises `RecipeError`, one line."""
    given = (report.get("recipe") or {}).get("gate") or () if rules is None else rules
    checks = tuple(_decide(report, _as_rule(rule, i)) for i, rule in enumerate(given))
    outcomes = {check.outcome for check in checks}
    if "fail" in outcomes:
        verdict: Literal["released", "refused", "undecided"] = "refused"
    elif "undecided" in outcomes or not checks:
        verdict = "undecided"
    else:
        verdict = "released"
    return Verdict(verdict=verdict, checks=checks, sentence=_sentence(verdict, checks))


def _as_rule(rule: RuleLike | Mapping[str, Any], index: int) -> Rule:
    values = rule if isinstance(rule, Mapping) else {k: getattr(rule, k) for k in Rule.__dataclass_fields__}
    try:
        return rule_of(values)
    except ValueError as error:
        raise RecipeError(f"gate.{index}: {error}") from error


def _sentence(verdict: str, checks: tuple[Check, ...]) -> str:
    if not checks:
        return "no [[gate]] rule; nothing was judged"
    subjects = ", ".join(dict.fromkeys(check.subject for check in checks if check.subject)) or "no artifact"
    if verdict == "released":
        return f"{subjects} keeps {'its one limit' if len(checks) == 1 else f'all {len(checks)} limits'}"
    wanted = "fail" if verdict == "refused" else "undecided"
    bad = [check for check in checks if check.outcome == wanted]
    verb = "breaks" if wanted == "fail" else "leaves undecided"
    return f"{subjects} {verb} {len(bad)} of {len(checks)} limits: {', '.join(check.metric for check in bad)}"


def _decide(report: Mapping[str, Any], rule: Rule) -> Check:
    row, limit = METRICS[rule.metric], parse_limit(rule)
    subject = rule.subject or str((report.get("selection") or {}).get("chosen") or "")
    unit = limit.unit or row.show
    found: Evidence | None = None
    try:
        found = _evidence(report, subject, rule, limit, row.decider)
        outcome, reason = _outcome(found, limit, rule)
    except UnmeasuredError as error:
        found, outcome, reason = None, "undecided", str(error)
    bounds = found.interval if found else None
    return Check(
        rule=describe(rule),
        metric=rule.metric,
        subject=subject,
        against=found.against if found else rule.against,
        value=bounds.value if bounds else None,
        bound_lower=bounds.lower if bounds else None,
        bound_upper=bounds.upper if bounds else None,
        threshold=limit.value,
        direction=limit.direction,
        unit=unit,
        outcome=outcome,
        n=found.n if found else None,
        more_samples=found.more if found and outcome == "undecided" else None,
        reason=reason,
    )


def _evidence(report: Mapping[str, Any], subject: str, rule: Rule, limit: Limit, decider: str) -> Evidence:
    if not subject:
        why = (report.get("selection") or {}).get("reason") or "no reason was recorded"
        raise UnmeasuredError(f"no artifact was chosen for release: {why}")
    found: Evidence = load(decider)(report, subject_of(report, subject), rule, limit)
    if not all(math.isfinite(x) for x in (found.interval.value, found.interval.lower, found.interval.upper)):
        raise UnmeasuredError(f"{rule.metric} of {subject} is not a finite number")
    return found


def _outcome(found: Evidence, limit: Limit, rule: Rule) -> tuple[Outcome, str]:
    bounds = found.interval
    at_most = limit.direction == "max"
    bad, good = (bounds.upper, bounds.lower) if at_most else (bounds.lower, bounds.upper)
    keeps, breaks = (bad <= limit.value, good > limit.value) if at_most else (bad >= limit.value, good < limit.value)
    value, edge = show(bounds.value, found.unit), "at most" if at_most else "at least"
    against = f" against {found.against}" if found.against != rule.against else ""
    exact = bounds.lower == bounds.value == bounds.upper
    sure = "" if exact else f" (99 % sure: {edge} {show(bad, found.unit)})"
    note = f"; {found.note}" if found.note else ""
    if keeps:
        return "pass", f"{value}{against}{sure}{note}"
    if breaks:
        best = "" if exact else f" (99 % sure: no better than {show(good, found.unit)})"
        return "fail", f"{value}{against}{best}{note}"
    span = f"{value}{against}, somewhere from {show(bounds.lower, found.unit)} to {show(bounds.upper, found.unit)}"
    need = (
        f"about {found.more:,} more {found.counted} would decide"
        if found.more
        else f"more {found.counted} may not decide"
    )
    return "undecided", f"{span}; {need}{note}"


def subject_of(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for subject in report.get("subjects") or ():
        if subject.get("name") == name:
            return subject
    raise UnmeasuredError(f"{name} is not among the subjects of this report")


def measured(subject: Mapping[str, Any], field: str, *path: str) -> float:
    """A positive finite number of a subject, or the recorded reason why there is none."""
    value: Any = subject.get(field)
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        why = (subject.get("missing") or {}).get(field) or "no reason was recorded"
        raise UnmeasuredError(f"{field} of {subject['name']} was not measured: {why}")
    if not math.isfinite(value) or value < 0:
        raise UnmeasuredError(f"{field} of {subject['name']} is {value}, not a measurement")
    return float(value)


def comparisons(report: Mapping[str, Any], kind: str, **wanted: Any) -> Iterator[Mapping[str, Any]]:
    for row in report.get("comparisons") or ():
        if row.get("kind") == kind and all(row.get(key) == value for key, value in wanted.items()):
            yield row


def decide_exact(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Size, parameters, MACs and peak memory: one figure without an interval; zero means that nothing was counted."""
    value = measured(subject, rule.metric)
    if value == 0:
        raise UnmeasuredError(f"{rule.metric} of {subject['name']} is 0, not a measurement")
    note = "one fresh process" if rule.metric == "peak_memory_bytes" else ""
    return Evidence(
        interval=Interval(value=value, lower=value, upper=value), unit=METRICS[rule.metric].show, n=1, note=note
    )


def _share(k: int, n: int, limit: Limit, against: str = "") -> Evidence:
    bounds = exact_share(k, n, GATE_CONFIDENCE)
    more = samples_by_width(bounds, n, limit.value)
    return Evidence(interval=bounds, unit="fraction", n=n, more=more, against=against)


def decide_accuracy(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Top-1 by the exact (Clopper-Pearson) bound."""
    value, n = measured(subject, "accuracy", "value"), measured(subject, "accuracy", "n")
    if n < 1 or n != int(n) or value > 1:
        raise UnmeasuredError(f"accuracy of {subject['name']} is {value} of {n} samples, not a share")
    return _share(round(value * n), int(n), limit)


def pairs_of(report: Mapping[str, Any], subject: Mapping[str, Any], against: str) -> tuple[Pairs, int, int]:
    """Paired counts on the test split, the number of samples and how many answers agree; contradictions are refused."""
    name = subject["name"]
    for row, other in (
        *((row, False) for row in comparisons(report, "accuracy", subject=name, against=against, split="test")),
        *((row, True) for row in comparisons(report, "accuracy", subject=against, against=name, split="test")),
    ):
        keys = ("both", "only_subject", "only_against", "neither", "agree", "n")
        counts = [row[key] for key in keys if type(row.get(key)) is int and row[key] >= 0]
        if len(counts) != len(keys):
            raise UnmeasuredError(f"the paired counts of {name} and {against} are not whole numbers")
        both, only_subject, only_against, neither, agree, n = counts
        if both + only_subject + only_against + neither != n or n == 0 or not both <= agree <= both + neither:
            raise UnmeasuredError(f"the paired counts of {name} and {against} do not add up to their n of {n}")
        if other:
            only_subject, only_against = only_against, only_subject
        right = measured(subject, "accuracy", "value") * n
        if abs(right - both - only_subject) > 0.5 or measured(subject, "accuracy", "n") != n:
            raise UnmeasuredError(f"the paired counts of {name} and {against} contradict the accuracy of {name}")
        return Pairs(both=both, only_subject=only_subject, only_against=only_against, neither=neither), n, agree
    subject_of(report, against)
    raise UnmeasuredError(f"{name} and {against} were not compared sample by sample on the test split")


def decide_accuracy_drop(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Top-1 lost, in points or relative, by the score interval of paired samples."""
    pairs, n, _ = pairs_of(report, subject, rule.against)
    if limit.unit == "%rel" and pairs.both + pairs.only_against == 0:
        raise UnmeasuredError(f"{rule.against} got nothing right; a relative drop does not exist")
    interval = paired_relative_drop if limit.unit == "%rel" else paired_difference

    def bounds(factor: float) -> Interval:
        found = interval(pairs.scaled(factor), GATE_CONFIDENCE)
        return Interval(value=100 * found.value, lower=100 * found.lower, upper=100 * found.upper)

    more = samples_to_decide(bounds, n, limit.value)
    return Evidence(interval=bounds(1.0), unit=limit.unit, n=n, more=more, against=rule.against)


def decide_agreement(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Share of samples with the same top-1 answer, right or wrong, by the exact bound."""
    _, n, agree = pairs_of(report, subject, rule.against)
    return _share(agree, n, limit, rule.against)
