"""The precision ladder's decisions: does a rung hold, how few layers stay in float, what is said of it. Torch-free.

A rung is judged on the validation split, so that the gate set is looked at once. Its state against the accuracy rules:

- "holds": its point values keep every limit, and the gate's own one-sided 99 % bound would keep it too, were the rates
  on the gate set those of the validation split;
- "undecided": its point values keep every limit, but at the size of the gate set the bound would not decide;
- "misses": a limit is broken.

The climb ends at the first rung that stands as well as the fp32 export does: no rung can mend what fp32 breaks itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pipeline.gates.judge import judge
from pipeline.gates.rules import RuleLike, describe
from pipeline.gates.selection import ACCURACY_METRICS, MEAN_METRICS, breaks
from pipeline.quantities import show

State = Literal["holds", "undecided", "misses"]
STATES: tuple[State, ...] = ("holds", "undecided", "misses")  # from good to bad
COUNTS = ("both", "only_subject", "only_against", "neither")


def accuracy_rules(rules: Sequence[RuleLike]) -> list[RuleLike]:
    """Those on the accuracy of whatever ships; a rule on another subject, on speed or on size makes nothing climb."""
    return [rule for rule in rules if not rule.subject and rule.metric in (*ACCURACY_METRICS, *MEAN_METRICS)]


def standing(
    name: str,
    accuracy: Mapping[str, Any],
    pairs: Sequence[Mapping[str, Any]],
    rules: Sequence[RuleLike],
    *,
    gate_n: int,
) -> dict[str, Any]:
    """`state`, and `checks` with the reason of each rule, for the subject `name` on the validation split.

    accuracy: its summary there. pairs: its comparisons there, as the evaluate stage has them. gate_n: samples of the
    gate set, at which the bound is foreseen.
    """
    row = {"name": name, "accuracy": dict(accuracy) | {"validation": accuracy["value"]}}
    foreseen = judge(_scaled(name, accuracy, pairs, gate_n), rules)
    checks = []
    for rule, check in zip(rules, foreseen.checks, strict=True):
        broken = breaks(row, rule, pairs)
        state: State = "misses" if broken else "holds" if check.outcome == "pass" else "undecided"
        checks.append(
            {
                "rule": describe(rule),
                "value": check.value,
                "unit": check.unit,
                "bound": check.bound_upper if check.direction == "max" else check.bound_lower,
                "threshold": check.threshold,
                "state": state,
                "reason": broken or check.reason,
            }
        )
    return {"state": worst([check["state"] for check in checks]), "checks": checks}


def worst(states: Sequence[State]) -> State:
    return STATES[max((STATES.index(state) for state in states), default=0)]


def reaches(state: State, target: State) -> bool:
    return STATES.index(state) <= STATES.index(target)


def _scaled(name: str, accuracy: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], gate_n: int) -> dict[str, Any]:
    """A report on `gate_n` samples with the rates of the validation split, for the gate to look at."""
    value = accuracy["value"]
    comparisons = []
    for pair in pairs:
        if pair["kind"] == "accuracy":
            row = dict(pair) | scaled_counts(pair, gate_n)
            value = (row["both"] + row["only_subject"]) / gate_n
        else:
            row = dict(pair) | {"n": gate_n}
        comparisons.append(row | {"split": "test"})
    if not comparisons:
        value = round(value * gate_n) / gate_n if 0 <= value <= 1 else value
    moments = {key: dict(row) | {"n": gate_n} for key, row in (accuracy.get("moments") or {}).items()}
    subject = {"name": name, "accuracy": dict(accuracy) | {"value": value, "n": gate_n, "moments": moments}}
    others = [{"name": pair["against"]} for pair in pairs]
    return {"subjects": [subject, *others], "comparisons": comparisons, "selection": {"chosen": name}}


def scaled_counts(pair: Mapping[str, Any], n: int) -> dict[str, int]:
    """The cells of a paired table on `n` samples, whole numbers that add up to `n`, by the largest remainders."""
    exact = {key: pair[key] * n / pair["n"] for key in COUNTS}
    found = {key: int(value) for key, value in exact.items()}
    short = n - sum(found.values())
    for key in sorted(COUNTS, key=lambda key: found[key] - exact[key])[:short]:
        found[key] += 1
    agree = min(max(round(pair["agree"] * n / pair["n"]), found["both"]), found["both"] + found["neither"])
    return found | {"n": n, "agree": agree}


def fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The least k in 1..most with `holds(k)`, which is taken to stay true once it is; None when even `most` does not.

    It doubles k until that holds and then halves the gap, so few of the dear large ones are tried.
    """
    low, high = 0, 1
    while not holds(min(high, most)):
        if high >= most:
            return None
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def better(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one rung stands better than another: by its state, then by its value on the validation split."""
    mine, theirs = STATES.index(record["state"]), STATES.index(other["state"])
    return (mine, -record["accuracy"]["value"]) < (theirs, -other["accuracy"]["value"])


def faster(record: Mapping[str, Any]) -> bool | None:
    """Whether it is faster than every float artifact on its runtime, 99 % sure; None where nothing was compared."""
    against = record.get("against") or {}
    if not against:
        return None
    return all(row["lower"] is not None and row["lower"] > 1 for row in against.values())


def speed_sentence(record: Mapping[str, Any]) -> str:
    """What is said of its speed against the float artifacts on the same runtime; "" where nothing was compared."""
    parts = []
    for name, row in (record.get("against") or {}).items():
        span = "" if row["lower"] is None else f" (99 % sure: {row['lower']:.2f}x to {row['upper']:.2f}x)"
        parts.append((row["lower"] is not None and row["lower"] > 1, f"{row['ratio']:.2f}x as fast as {name}{span}"))
    slow = [text for good, text in parts if not good]
    if slow:
        return f"not faster, so no improvement: {'; '.join(slow)}"
    return "; ".join(text for _, text in parts)


def climb_sentence(form: str, records: Sequence[Mapping[str, Any]], target: State, fp32: Mapping[str, Any]) -> str:
    """One sentence on the climb of one form: which rung reached the target, or that none did; and, where plain int8 was
    not timed or is not faster, that."""
    parts = [f"{form}: {_outcome(records, target, fp32)}"]
    plain = records[0]
    if reason := (plain.get("missing") or {}).get("p50_ms"):
        parts.append(f"accuracy judged by {plain['runtime']} on the file itself, latency not measured: {reason}")
    elif speed := speed_sentence(plain):
        parts.append(f"plain int8 on {plain['runtime']}: {speed}")
    return "; ".join(parts)


def _outcome(records: Sequence[Mapping[str, Any]], target: State, fp32: Mapping[str, Any]) -> str:
    if target == "misses":
        why = "; ".join(check["reason"] for check in fp32["checks"] if check["state"] == "misses")
        return f"fp32 breaks the rules itself ({why}), which no rung can mend"
    reached = [record for record in records if reaches(record["state"], target)]
    goal = "holds" if target == "holds" else "keeps the limits by its point value, as fp32 does, which decides nothing"
    if reached:
        first = reached[0]
        climbed = "plain int8" if first["rung"] == "plain" else f"rung {first['rung']}"
        return f"{climbed} {goal} on the validation split"
    best = records[0]
    for record in records[1:]:
        best = record if better(record, best) else best
    why = "; ".join(check["reason"] for check in best["checks"] if not reaches(check["state"], target))
    tried = ", ".join(dict.fromkeys(record["rung"] for record in records))
    return f"no rung reaches the rules ({tried}); {best['rung']} comes closest: {why}"


def record_line(record: Mapping[str, Any], show_unit: str = "fraction") -> str:
    """One line of the terminal about one rung."""
    value = show(record["accuracy"]["value"], show_unit)
    low, high = (show(end, show_unit) for end in record["accuracy"]["ci95"])
    time = "" if record.get("p50_ms") is None else f", {show(record['p50_ms'], 'ms')}"
    return f"{record['form']}, {record['label']}: {value} ({low} to {high}){time}, {record['state']}"
