"""Checks that count samples: accuracy, what it lost, agreement, flips; of all samples, of one slice, or of the worst.

A slice is the samples with one value of a column, such as those of one class. The worst of many slices keeps its limit
when each does (so each is looked at with the full 99 %), and breaks it when one does: with k slices to look at, the
bound that refuses has its error divided by k (Bonferroni), or chance alone would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.gates.intervals import (
    GATE_CONFIDENCE,
    Interval,
    Pairs,
    exact_share,
    mcnemar,
    paired_difference,
    paired_relative_drop,
    samples_by_width,
    samples_to_decide,
)
from pipeline.gates.judge import Evidence, UnmeasuredError, comparisons, measured, subject_of
from pipeline.gates.rules import METRICS, Limit, Rule

CLASS = "label"
TOP1 = "top1"  # the metric of tasks whose answers are classes
GROUP = ("both", "only_subject", "only_against", "neither", "agree")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Paired counts of some samples; `agree`: how many answers are the same."""

    pairs: Pairs
    agree: int

    @property
    def n(self) -> int:
        return int(self.pairs.n)


def counts_of(report: Mapping[str, Any], subject: Mapping[str, Any], against: str) -> tuple[Counts, Mapping[str, Any]]:
    """Paired counts on the test split and the row that holds them; contradictions are refused."""
    name = subject["name"]
    for row, other in (
        *((row, False) for row in comparisons(report, "accuracy", subject=name, against=against, split="test")),
        *((row, True) for row in comparisons(report, "accuracy", subject=against, against=name, split="test")),
    ):
        n = row.get("n")
        if type(n) is not int:
            raise UnmeasuredError(f"the paired counts of {name} and {against} do not say of how many samples")
        found = _counts([row.get(key) for key in GROUP], name, against, turned=other, of=n)
        right = measured(subject, "accuracy", "value") * n
        if abs(right - found.pairs.both - found.pairs.only_subject) > 0.5 or measured(subject, "accuracy", "n") != n:
            raise UnmeasuredError(f"the paired counts of {name} and {against} contradict the accuracy of {name}")
        return found, {**row, "turned": other}
    subject_of(report, against)
    raise UnmeasuredError(f"{name} and {against} were not compared sample by sample on the test split")


def _counts(values: Any, name: str, against: str, *, turned: bool, of: Any = None) -> Counts:
    """`values` as `GROUP` names them; `of`: how many samples they must be of."""
    if not isinstance(values, list) or len(values) != len(GROUP) or any(type(v) is not int or v < 0 for v in values):
        raise UnmeasuredError(f"the paired counts of {name} and {against} are not whole numbers")
    both, only_subject, only_against, neither, agree = values
    n = both + only_subject + only_against + neither if of is None else of
    if both + only_subject + only_against + neither != n or not both <= agree <= both + neither or of == 0:
        raise UnmeasuredError(f"the paired counts of {name} and {against} do not add up to their n of {n}")
    if turned:
        only_subject, only_against = only_against, only_subject
    return Counts(
        pairs=Pairs(both=both, only_subject=only_subject, only_against=only_against, neither=neither), agree=agree
    )


def pairs_of(report: Mapping[str, Any], subject: Mapping[str, Any], against: str) -> tuple[Pairs, int, int]:
    """Paired counts on the test split, the number of samples and how many answers agree."""
    found, _ = counts_of(report, subject, against)
    return found.pairs, found.n, found.agree


def slices_of(report: Mapping[str, Any], subject: Mapping[str, Any], against: str, column: str) -> dict[str, Counts]:
    """Value of `column` -> paired counts of the samples that have it, none left out; or why there are none."""
    whole, row = counts_of(report, subject, against)
    name, table = subject["name"], (row.get("by") or {}).get(column)
    known = sorted(set(row.get("by") or {}) - {CLASS})
    if not isinstance(table, list) or not table:
        if column == CLASS:
            raise UnmeasuredError(f"{name} and {against} were not compared class by class; run the recipe again")
        told = f"it has {', '.join(known)}" if known else "no column was recorded"
        raise UnmeasuredError(f"the test samples have no column {column!r}: {told}")
    facts = report.get("data") or {}
    names = facts.get("class_names") if column == CLASS else (facts.get("slices") or {}).get(column)
    if not isinstance(names, list) or len(names) < len(table):
        raise UnmeasuredError(f"the names of the {len(table)} values of {column} were not recorded")
    table = table + [[0] * len(GROUP)] * (len(names) - len(table))  # of the last ones no sample came up
    found = {str(key): _counts(v, name, against, turned=row["turned"]) for key, v in zip(names, table, strict=True)}
    n, agree = sum(group.n for group in found.values()), sum(group.agree for group in found.values())
    # a sample may have no value in a column, but every one has a class
    if n > whole.n or agree > whole.agree or (column == CLASS and (n, agree) != (whole.n, whole.agree)):
        raise UnmeasuredError(f"the counts of {name} and {against} by {column} do not add up to their n of {whole.n}")
    return found


Bounds = Callable[[Counts, Limit, float, float], Interval]  # counts, limit, factor more samples, confidence


def _share(k: float, n: float, factor: float, confidence: float) -> Interval:
    if factor == 1.0:
        return exact_share(int(k), int(n), confidence)
    found, root = exact_share(int(k), int(n), confidence), factor**0.5
    value = found.value
    return Interval(value=value, lower=value - (value - found.lower) / root, upper=value + (found.upper - value) / root)


def accuracy_bounds(found: Counts, limit: Limit, factor: float, confidence: float) -> Interval:
    """Top-1 by the exact (Clopper-Pearson) bound."""
    return _share(found.pairs.both + found.pairs.only_subject, found.n, factor, confidence)


def agreement_bounds(found: Counts, limit: Limit, factor: float, confidence: float) -> Interval:
    """Share of samples with the same top-1 answer, right or wrong, by the exact bound."""
    return _share(found.agree, found.n, factor, confidence)


def flip_bounds(found: Counts, limit: Limit, factor: float, confidence: float) -> Interval:
    """Share of samples that the other got right and this one does not (negative flips), by the exact bound."""
    return _share(found.pairs.only_against, found.n, factor, confidence)


def drop_bounds(found: Counts, limit: Limit, factor: float, confidence: float) -> Interval:
    """Top-1 lost, in points or relative, by the score interval of paired samples."""
    interval = paired_difference
    if limit.unit == "%rel":
        if found.pairs.both + found.pairs.only_against == 0:
            raise UnmeasuredError("the baseline got nothing right; a relative drop does not exist")
        interval = paired_relative_drop
    bounds = interval(found.pairs.scaled(factor), confidence)
    return Interval(value=100 * bounds.value, lower=100 * bounds.lower, upper=100 * bounds.upper)


def told_beside(report: Mapping[str, Any], check: Mapping[str, Any]) -> str:
    """What a page tells beside a drop of all samples, and no verdict looks at: discordant answers, McNemar's test."""
    if check["metric"] != "accuracy_drop":
        return ""
    try:
        pairs, n, _ = pairs_of(report, subject_of(report, check["subject"]), check["against"])
    except UnmeasuredError:
        return ""
    if n != check["n"]:  # it is about a slice
        return ""
    p = mcnemar(pairs)
    shown = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    return (
        f"of {n:,} images only {check['subject']} is right on {int(pairs.only_subject):,}, only {check['against']} on "
        f"{int(pairs.only_against):,}; McNemar's exact test of no difference, which is not what the gate asks: {shown}"
    )


BOUNDS: dict[str, Bounds] = {
    "accuracy": accuracy_bounds,
    "agreement": agreement_bounds,
    "flip_rate": flip_bounds,
    "accuracy_drop": drop_bounds,
    "worst_class_drop": drop_bounds,
}


def decide_accuracy(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """Top-1 by the exact (Clopper-Pearson) bound; of a slice, from the counts beside any other subject."""
    if rule.slice:
        against = next((row["against"] for row in comparisons(report, "accuracy", subject=subject["name"])), "")
        return decide(report, subject, rule, limit, against=against, shown="")
    of = (subject.get("accuracy") or {}).get("metric", TOP1)
    if of != TOP1:
        raise UnmeasuredError(f"accuracy counts right answers, and {subject['name']} was judged by {of}; ask for that")
    value, n = measured(subject, "accuracy", "value"), measured(subject, "accuracy", "n")
    if n < 1 or n != int(n) or value > 1:
        raise UnmeasuredError(f"accuracy of {subject['name']} is {value} of {n} samples, not a share")
    bounds = exact_share(round(value * n), int(n), GATE_CONFIDENCE)
    more = samples_by_width(bounds, int(n), limit.value)
    return Evidence(interval=bounds, unit="fraction", n=int(n), more=more)


def decide(
    report: Mapping[str, Any],
    subject: Mapping[str, Any],
    rule: Rule,
    limit: Limit,
    *,
    against: str | None = None,
    shown: str | None = None,
) -> Evidence:
    """A share or a drop of paired samples: of all, of the slice that the rule names, or of the worst one."""
    other = rule.against if against is None else against
    shown = other if shown is None else shown
    bounds, unit = BOUNDS[rule.metric], limit.unit or METRICS[rule.metric].show
    column = CLASS if rule.metric == "worst_class_drop" else rule.slice
    if not column:
        found, _ = counts_of(report, subject, other)
        return _of_one(found, bounds, unit, limit, shown, "")
    column, _, value = column.partition("=")
    groups = slices_of(report, subject, other, column.strip())
    if value:
        if value.strip() not in groups:
            raise UnmeasuredError(f"column {column.strip()} has no value {value.strip()!r}: {_some(groups)}")
        found = groups[value.strip()]
        if not found.n:
            raise UnmeasuredError(f"no test sample has {rule.slice}")
        return _of_one(found, bounds, unit, limit, shown, f"{rule.slice}, {found.n:,} samples")
    return _of_worst(groups, bounds, unit, limit, shown, "class" if column == CLASS else column.strip())


def _some(groups: Mapping[str, Any]) -> str:
    return "it has " + ", ".join(list(groups)[:5]) + (", ..." if len(groups) > 5 else "")


def _of_one(found: Counts, bounds: Bounds, unit: str, limit: Limit, against: str, note: str) -> Evidence:
    more = samples_to_decide(lambda factor: bounds(found, limit, factor, GATE_CONFIDENCE), found.n, limit.value)
    interval = bounds(found, limit, 1.0, GATE_CONFIDENCE)
    return Evidence(interval=interval, unit=unit, n=found.n, more=more, against=against, note=note)


def _of_worst(
    groups: Mapping[str, Counts], bounds: Bounds, unit: str, limit: Limit, against: str, what: str
) -> Evidence:
    """The interval of the worst group; its note names the group that decides, `more` counts samples of all groups."""
    empty = [name for name, found in groups.items() if not found.n]
    if empty:
        raise UnmeasuredError(f"no test sample has {what} {empty[0]!r}")
    sign = 1.0 if limit.direction == "max" else -1.0
    careful = 1 - (1 - GATE_CONFIDENCE) / len(groups)
    found = {name: bounds(group, limit, 1.0, GATE_CONFIDENCE) for name, group in groups.items()}
    strict = {name: bounds(group, limit, 1.0, careful) for name, group in groups.items()}
    worst = max(found, key=lambda name: sign * found[name].value)

    def bad(interval: Interval) -> float:
        return interval.upper if sign > 0 else -interval.lower

    def good(interval: Interval) -> float:
        return interval.lower if sign > 0 else -interval.upper

    decisive = max(found, key=lambda name: bad(found[name]))
    proven = max(strict, key=lambda name: good(strict[name]))
    unfavourable, favourable = sign * bad(found[decisive]), sign * good(strict[proven])
    value = found[worst].value
    lower, upper = (favourable, unfavourable) if sign > 0 else (unfavourable, favourable)
    n = sum(group.n for group in groups.values())
    more: int | None = 0
    for name, group in groups.items():
        if bad(found[name]) > sign * limit.value and more is not None:
            need = samples_to_decide(
                lambda factor, group=group: bounds(group, limit, factor, careful), group.n, limit.value
            )
            more = None if need is None else max(more, round(need * n / group.n))
    note = f"worst {what} {worst!r}, {groups[worst].n:,} samples"
    if decisive != worst:
        note += f"; widest {decisive!r}, {groups[decisive].n:,} samples"
    interval = Interval(value=value, lower=min(lower, value), upper=max(upper, value))
    return Evidence(interval=interval, unit=unit, n=n, more=more or None, against=against, note=note)
