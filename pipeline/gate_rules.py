"""What a gate may ask: one row a metric, and the strict reading of one `[[gate]]` rule.

Imports nothing heavy and nothing of the recipe: the recipe imports this. A new metric is one row in `METRICS` and one
function in the module that its decider names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from pipeline.errors import nearest
from pipeline.quantities import show

Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric: the way its limit points, the units that the limit may have, and who decides it.

    `units` holds `""` where a bare number is meaningful (its unit then stands in the metric's name). `lowest` and
    `highest` bound a sensible limit, in the unit `""`. `show` is the unit that values are displayed in,
    `words` the heading that people read.
    """

    direction: Direction
    units: tuple[str, ...]
    needs_against: bool
    decider: str
    show: str
    lowest: float = -math.inf
    highest: float = math.inf
    above: float = -math.inf
    words: str
    meaning: str


def _share(words: str, *, needs_against: bool, decider: str, meaning: str) -> MetricRow:
    return MetricRow(
        direction="min",
        units=("", "%"),
        needs_against=needs_against,
        decider=decider,
        show="fraction",
        lowest=0.0,
        highest=1.0,
        words=words,
        meaning=meaning,
    )


def _amount(
    words: str, show: str, decider: str, meaning: str, *, direction: Direction = "max", compared: bool = False
) -> MetricRow:
    return MetricRow(
        direction=direction,
        units=("",),
        needs_against=compared,
        decider=decider,
        show=show,
        above=0.0,
        words=words,
        meaning=meaning,
    )


def _mean(words: str, unit: str, meaning: str) -> dict[str, MetricRow]:
    """The two rows of a metric that is a mean over images: what it is, and what it lost."""
    name = words.lower().replace("-", "_")
    value = MetricRow(
        direction="min",
        units=(unit,),
        needs_against=False,
        decider="pipeline.gate_dense:decide_value",
        show=unit,
        words=words,
        meaning=f"mean {meaning} over the test images",
    )
    drop = MetricRow(
        direction="max",
        units=(unit,),
        needs_against=True,
        decider="pipeline.gate_dense:decide_drop",
        show=unit,
        words=f"{words} lost",
        meaning=f"mean {meaning} lost against another subject, image by image",
    )
    return {name: value, f"{name}_drop": drop}


_EXACT, _LATENCY = "pipeline.gate:decide_exact", "pipeline.gate_latency:decide_"

METRICS: dict[str, MetricRow] = {
    "accuracy": _share(
        "Accuracy", needs_against=False, decider="pipeline.gate:decide_accuracy", meaning="top-1 on the test split"
    ),
    "accuracy_drop": MetricRow(
        direction="max",
        units=("pt", "%rel"),
        needs_against=True,
        decider="pipeline.gate:decide_accuracy_drop",
        show="pt",
        words="Accuracy lost",
        meaning="top-1 lost against another subject, sample by sample",
    ),
    "agreement": _share(
        "Same answers",
        needs_against=True,
        decider="pipeline.gate:decide_agreement",
        meaning="share of equal top-1 answers",
    ),
    **_mean("PSNR", "dB", "peak signal-to-noise ratio"),
    **_mean("SSIM", "pt", "structural similarity in hundredths"),
    **_mean("Dice", "pt", "Dice coefficient in hundredths"),
    **_mean("IoU", "pt", "intersection over union in hundredths"),
    **_mean("F-measure", "pt", "F-measure of an image in hundredths"),
    "speedup_p50": _amount(
        "Speed-up",
        "x",
        _LATENCY + "speedup",
        "the median latency of the other subject over its own",
        direction="min",
        compared=True,
    ),
    "latency_p50_ms": _amount("Median latency", "ms", _LATENCY + "latency_p50", "median latency, device time"),
    "latency_p90_ms": _amount(
        "90th percentile of latency", "ms", _LATENCY + "latency_p90", "90th percentile of latency, device time"
    ),
    "throughput_per_s": _amount("Throughput", "/s", _LATENCY + "throughput", "images a second", direction="min"),
    "peak_memory_bytes": _amount("Peak memory", "bytes", _EXACT, "peak memory of a fresh process"),
    "size_bytes": _amount("File size", "bytes", _EXACT, "size of the file that ships"),
    "params": _amount("Parameters", "", _EXACT, "parameters"),
    "macs": _amount("MACs an image", "", _EXACT, "multiply-accumulates of one image"),
}

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


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule read from a report or a rules file; `subject` empty means the artifact chosen for release."""

    metric: str
    against: str = ""
    max: str | float | None = None
    min: str | float | None = None
    subject: str = ""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit as numbers: `value` in `unit` (`""`, `pt`, `%rel`); a share written in `%` is a fraction here."""

    direction: Direction
    value: float
    unit: str
    text: str


def parse_limit(rule: RuleLike) -> Limit:
    """The limit of `rule`. Raises `ValueError`, one line, for anything but one readable limit in an allowed unit."""
    if rule.metric not in METRICS:
        raise ValueError(f"unknown metric {rule.metric!r}{nearest(rule.metric, list(METRICS))}")
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


def rule_of(values: Mapping[str, Any]) -> Rule:
    """A validated rule from a table of a report or a rules file. Unknown keys are refused. Raises `ValueError`."""
    known = list(Rule.__dataclass_fields__)
    for key in values:
        if key not in known:
            raise ValueError(f"gate rule: unknown key {key!r}{nearest(key, known)}")
    if "metric" not in values:
        raise ValueError('gate rule: metric is missing; add metric = "accuracy_drop" or another one')
    rule = Rule(**{**values, "against": values.get("against") or "", "subject": values.get("subject") or ""})
    check_rule(rule)
    return rule


def describe(rule: RuleLike) -> str:
    """The rule as people write it: `accuracy_drop against teacher <= 1.0pt`."""
    limit = parse_limit(rule)
    against = f" against {rule.against}" if rule.against else ""
    return f"{rule.metric}{against} {'<=' if limit.direction == 'max' else '>='} {limit.text}"


def heading(check: Mapping[str, Any]) -> str:
    """A recorded check for people: `Accuracy lost against teacher at most 6.00 pt`. Unknown metrics keep their name."""
    words = METRICS[check["metric"]].words if check["metric"] in METRICS else str(check["metric"])
    against = f" against {check['against']}" if check["against"] else ""
    sign = "\u2264" if check["direction"] == "max" else "\u2265"
    limit = show(check["threshold"], check["unit"]).replace(" ", "\u00a0")
    return f"{words}{against} {sign}\u00a0{limit}"


def as_mapping(rule: RuleLike) -> dict[str, Any]:
    """The rule as a JSON-able table, without empty keys."""
    values = asdict(rule) if isinstance(rule, Rule) else {k: getattr(rule, k) for k in Rule.__dataclass_fields__}
    return {key: value for key, value in values.items() if value not in ("", None)}
