"""The strict reading of one `[[gate]]` rule, by the table of metrics.

Imports nothing heavy and nothing of the recipe: the recipe imports this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pipeline.errors import nearest
from pipeline.gates.metrics import METRICS, Direction
from pipeline.quantities import show

_LIMIT = re.compile(r"\s*([+-]?(?:\d[\d_]*)(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*")


class RuleLike(Protocol):
    """A rule as the recipe has it; `GateRule` and `Rule` both fit."""

    @property
    def metric(self) -> str: ...
    @property
    def against(self) -> str: ...
    @property
    def max(self) -> str | float | None: ...
    @property
    def min(self) -> str | float | None: ...
    @property
    def subject(self) -> str: ...
    @property
    def slice(self) -> str: ...
    @property
    def deadline_ms(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule read from a report or a rules file; `subject` empty means the artifact chosen for release.

    `slice`: only the samples of a slice, `"column=value"`, or of its worst one, `"column"`. `deadline_ms`: 0 for none.
    """

    metric: str
    against: str = ""
    max: str | float | None = None
    min: str | float | None = None
    subject: str = ""
    slice: str = ""
    deadline_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit as numbers: `value` in `unit` (`""`, `pt`, `%rel`); a share written in `%` is a fraction here."""

    direction: Direction
    value: float
    unit: str
    text: str


def check_metric(name: str) -> None:
    """Refuse a name that no row of the table has, in one line. Raises `ValueError`."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}{nearest(name, list(METRICS))}")


def parse_limit(rule: RuleLike) -> Limit:
    """The limit of `rule`. Raises `ValueError`, one line, for anything but one readable limit in an allowed unit."""
    check_metric(rule.metric)
    row = METRICS[rule.metric]
    if (rule.max is None) == (rule.min is None):
        got = "neither" if rule.max is None else "both"
        raise ValueError(f"{rule.metric}: give exactly one of max and min; got {got}")
    key: Direction = "max" if rule.max is not None else "min"
    if key != row.direction:
        raise ValueError(f"{rule.metric} takes {row.direction}, not {key}: it is {row.meaning}")
    written = rule.max if key == "max" else rule.min
    number, unit = _number_and_unit(written, f"{key} = {written!r}", rule.metric)
    where = f"{key} = {written!r}"
    if unit not in row.units:
        if not unit:
            such = f"'{number:.1f}{row.units[0]}'" + (f" or '1{row.units[1]}'" if len(row.units) > 1 else "")
            raise ValueError(f"{where}: {rule.metric} needs a unit, such as {such}")
        allowed = " or ".join(repr(u) if u else "a bare number" for u in row.units)
        raise ValueError(f"{where}: {rule.metric} cannot be given in {unit!r}; use {allowed}")
    value = number / 100 if unit == "%" else number
    if not row.lowest <= value <= row.highest:
        raise ValueError(f"{where}: {rule.metric} is a share; write it as 0.88 or '88%'")
    if value <= row.above:
        raise ValueError(f"{where}: {rule.metric} must be above {row.above:g}")
    return Limit(
        direction=key,
        value=value,
        unit="" if unit == "%" else unit,
        text=written if isinstance(written, str) else f"{number:,.12g}",
    )


def _number_and_unit(written: str | float | None, where: str, metric: str) -> tuple[float, str]:
    if isinstance(written, bool) or not isinstance(written, (str, int, float)):
        raise ValueError(f"{where}: not a limit of {metric}; give a number or a number with its unit")
    if isinstance(written, str):
        match = _LIMIT.fullmatch(written)
        if not match:
            raise ValueError(f"{where}: not a limit of {metric}; give a number or a number with its unit")
        number, unit = float(match[1].replace("_", "")), match[2]
        unit = {"PT": "pt", "%REL": "%rel", "DB": "dB"}.get(unit.upper(), unit)
    else:
        number, unit = float(written), ""
    if not math.isfinite(number):
        raise ValueError(f"{where}: the limit of {metric} must be finite")
    return number, unit


def check_rule(rule: RuleLike) -> None:
    """Refuse a rule that cannot be decided, in one line; used while the recipe is validated. Raises `ValueError`."""
    parse_limit(rule)
    row = METRICS[rule.metric]
    if row.needs_against and not rule.against:
        raise ValueError(f'against is missing: {rule.metric} compares two subjects; add against = "teacher"')
    if rule.against and not row.needs_against:
        raise ValueError(f"against = {rule.against!r}: {rule.metric} is not a comparison; remove against")
    if rule.subject and rule.subject == rule.against:
        raise ValueError(f"subject and against are both {rule.subject!r}; nothing would be compared")
    if rule.slice and not row.sliced:
        can = ", ".join(name for name, other in METRICS.items() if other.sliced)
        raise ValueError(f"slice = {rule.slice!r}: {rule.metric} has no slices; {can} have")
    if rule.slice and not all(part.strip() for part in rule.slice.split("=", 1)):
        raise ValueError(f"slice = {rule.slice!r}: give a column, or column=value")
    deadline = rule.deadline_ms
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not 0 <= deadline < math.inf:
        raise ValueError(f"deadline_ms = {deadline!r}: give milliseconds, such as 33.3")
    if (rule.metric == "deadline_misses") != (deadline > 0):
        why = "says no deadline; add deadline_ms = 33.3" if not deadline else f"does not go with {rule.metric}"
        raise ValueError(f"deadline_ms: {rule.metric} {why}" if not deadline else f"deadline_ms {why}; remove it")


def rule_of(values: Mapping[str, Any]) -> Rule:
    """A validated rule from a table of a report or a rules file. Unknown keys are refused. Raises `ValueError`."""
    known = list(Rule.__dataclass_fields__)
    for key in values:
        if key not in known:
            raise ValueError(f"gate rule: unknown key {key!r}{nearest(key, known)}")
    if "metric" not in values:
        raise ValueError('gate rule: metric is missing; add metric = "accuracy_drop" or another one')
    empty = {key: values.get(key) or "" for key in ("against", "subject", "slice")}
    if not all(isinstance(value, str) for value in (values["metric"], *empty.values())):
        raise ValueError("gate rule: metric, against, subject and slice are names; write them as text")
    rule = Rule(**{**values, **empty, "deadline_ms": values.get("deadline_ms") or 0.0})
    check_rule(rule)
    return rule


def describe(rule: RuleLike) -> str:
    """The rule as people write it: `accuracy_drop against teacher <= 1.0pt`."""
    limit = parse_limit(rule)
    against = f" against {rule.against}" if rule.against else ""
    against += f" of {rule.slice}" if rule.slice else ""
    against += f" of {rule.deadline_ms:g} ms" if rule.deadline_ms else ""
    return f"{rule.metric}{against} {'<=' if limit.direction == 'max' else '>='} {limit.text}"


def heading(check: Mapping[str, Any]) -> str:
    """A recorded check for people: `Accuracy lost against teacher at most 6.00 pt`. Unknown metrics keep their name."""
    words = METRICS[check["metric"]].words if check["metric"] in METRICS else str(check["metric"])
    against = f" against {check['against']}" if check["against"] else ""
    asked = re.search(r" of (.+?) [<>]= ", str(check.get("rule", "")))
    against += f" of {asked[1]}" if asked else ""
    sign = "\u2264" if check["direction"] == "max" else "\u2265"
    limit = show(check["threshold"], check["unit"]).replace(" ", "\u00a0")
    return f"{words}{against} {sign}\u00a0{limit}"


def as_mapping(rule: RuleLike) -> dict[str, Any]:
    """The rule as a JSON-able table, without empty keys."""
    values = asdict(rule) if isinstance(rule, Rule) else {k: getattr(rule, k) for k in Rule.__dataclass_fields__}
    return {key: value for key, value in values.items() if value not in ("", None, 0.0)}
