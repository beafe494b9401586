"""Rules over a report's measurements -> released, refused or undecided.

Reads the report alone (counts and block medians stand in it), so a verdict can be given again anywhere. Every check is
decided by a one-sided 99 % bound against the limit itself: it passes when the unfavourable bound keeps the limit, fails
when even the favourable one breaks it, and is undecided in between. What is missing, not finite or contradicts itself
never passes.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline.errors import RecipeError
from pipeline.gates.intervals import GATE_CONFIDENCE, Interval
from pipeline.gates.rules import METRICS, Limit, Rule, RuleLike, describe, parse_limit, rule_of
from pipeline.gates.waivers import Waiver, waivers_of
from pipeline.quantities import show
from pipeline.registry import load

Outcome = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule decided. `value`, the bounds and `threshold` are in `unit`; `more_samples` are further ones needed.

    `waived` says who let it go, until when and why; None where nobody did.
    """

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
    waived: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All checks, and what they come to: `released`, `refused` or `undecided`.

    `assurance`: how often a verdict of these checks together may be wrong. `notes`: what is to be said of waivers.
    """

    verdict: Literal["released", "refused", "undecided"]
    checks: tuple[Check, ...]
    sentence: str
    assurance: dict[str, Any]
    notes: tuple[str, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """What a report keeps of it."""
        kept: dict[str, Any] = {"gates": self.gates(), "verdict": self.verdict, "assurance": self.assurance}
        return kept | ({"notes": list(self.notes)} if self.notes else {})

    def gates(self) -> list[dict[str, Any]]:
        """The checks as JSON-able tables, as they stand in report.json; `waived` only where it is."""
        return [{k: v for k, v in asdict(check).items() if k != "waived" or v is not None} for check in self.checks]


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


def judge(
    report: Mapping[str, Any],
    rules: Iterable[RuleLike | Mapping[str, Any]] | None = None,
    *,
    waivers: Iterable[Any] | None = None,
    today: datetime.date | None = None,
) -> Verdict:
    """Decide every rule, and let go what is waived on `today` (default: now, UTC).

    Rules and waivers are by default those of the report's recipe. An unreadable one raises `RecipeError`, one line.
    """
    recipe = report.get("recipe") or {}
    given = (recipe.get("gate") or ()) if rules is None else rules
    granted = waivers_of((recipe.get("waiver") or ()) if waivers is None else waivers)
    today = today or datetime.datetime.now(datetime.timezone.utc).date()
    faults = {waiver: waiver.fault(today) for waiver in granted}
    usable = [waiver for waiver, fault in faults.items() if fault is None]
    decided = [(rule, _decide(report, rule)) for rule in (_as_rule(rule, i) for i, rule in enumerate(given))]
    fitting = [_waiver_of(rule, check, usable) for rule, check in decided]
    checks = tuple(
        replace(check, waived=str(waiver)) if waiver else check
        for (_, check), waiver in zip(decided, fitting, strict=True)
    )
    outcomes = {check.outcome for check in checks if check.waived is None}
    if "fail" in outcomes:
        verdict: Literal["released", "refused", "undecided"] = "refused"
    elif "undecided" in outcomes or not checks:
        verdict = "undecided"
    else:
        verdict = "released"
    notes = [fault for fault in faults.values() if fault]
    notes += [f"waiver of {waiver.metric}: nothing to waive; remove it" for waiver in usable if waiver not in fitting]
    return Verdict(
        verdict=verdict,
        checks=checks,
        sentence=_sentence(verdict, checks),
        assurance=assurance(checks),
        notes=tuple(notes),
    )


def _waiver_of(rule: Rule, check: Check, waivers: list[Waiver]) -> Waiver | None:
    if check.outcome == "pass":
        return None
    return next((waiver for waiver in waivers if waiver.fits(rule, check.subject)), None)


def assurance(checks: Iterable[Check]) -> dict[str, Any]:
    """How often the verdict of `checks` together may be wrong, from the confidence of each one's bounds.

    A release that should not be has a limit that does not hold, and must pass the check of that limit: it errs as that
    one check does. A refusal errs when any of them does: the sum of their errors bounds it, however they hang together.
    """
    sure = [c for c in checks if c.value is not None and c.bound_lower != c.bound_upper]
    k, error = len(sure), round(1 - GATE_CONFIDENCE, 9)
    released, refused = (error if k else 0.0), min(1.0, round(k * error, 9))
    if k == 0:
        sentence = "no check rests on samples"
    elif k == 1:
        sentence = f"one check rests on samples: it errs in at most {100 * error:g} % of cases, either way"
    else:
        sentence = (
            f"{k} of these checks rest on samples: a release is wrong in at most {100 * released:g} % of cases (every "
            f"limit must hold), a refusal in at most {100 * refused:g} % (any of {k} may err)"
        )
    return {
        "confidence": GATE_CONFIDENCE,
        "checks": k,
        "released_wrongly_at_most": released,
        "refused_wrongly_at_most": refused,
        "sentence": sentence,
    }


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
    waived = [check.metric for check in checks if check.waived is not None]
    if verdict == "released" and waived:
        kept = len(checks) - len(waived)
        if not kept:
            return f"{subjects} keeps none of its limits, all are waived: {', '.join(waived)}"
        return f"{subjects} keeps {kept} of {len(checks)} limits, the rest is waived: {', '.join(waived)}"
    if verdict == "released":
        return f"{subjects} keeps {'its one limit' if len(checks) == 1 else f'all {len(checks)} limits'}"
    wanted = "fail" if verdict == "refused" else "undecided"
    bad = [check for check in checks if check.outcome == wanted and check.waived is None]
    verb = "breaks" if wanted == "fail" else "leaves undecided"
    many = "its one limit" if len(checks) == 1 else f"{len(bad)} of {len(checks)} limits"
    return f"{subjects} {verb} {many}: {', '.join(check.metric for check in bad)}"


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
        f"about {found.more:,} more {found.counted} would decide, 4 times in 5"
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
    """A finite number of a subject, 0 or more, or the recorded reason why there is none."""
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
