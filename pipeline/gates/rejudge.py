"""The verdict once more, from the recorded samples alone: per-sample outcomes and raw timings, not the figures that
somebody wrote down. Needs neither torch nor the data set nor the machine that measured.

Every figure that a gate reads is computed again by the very functions that made it: accuracies and paired counts from
the outcomes, percentiles, block medians and ratios from the timings. Then the rules judge the figures found. What is
recorded and comes out otherwise is a difference; what no sample can tell (memory, energy) is taken as recorded.
"""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import RecipeError, UserError
from pipeline.sample_files import SPLITS, EvidenceError, read_outcomes, read_timings

LATENCY = "latency_"  # of the keys in a subject's `stored`
RELATIVE = 1e-9  # sums in another order, on another processor, differ by less
CONFIDENCE = 0.99
# One figure of one process or of the graph.
OUTSIDE = ("peak_memory_bytes", "energy_j", "memory_ratio", "energy_ratio", "params", "macs", "int8_share")


@dataclass(frozen=True, kw_only=True)
class Rejudged:
    """What came out. `differences`: recorded figures that the samples do not give, one line each.

    verdict, sentence, gates: as `judge` gives them for the figures found. recorded: the verdict of the report.
    samples: how many outcome and timing files were read. taken: kinds of comparisons and metrics that no sample can
    tell, taken as recorded.
    """

    verdict: str
    sentence: str
    gates: list[dict[str, Any]]
    recorded: str
    samples: int
    differences: tuple[str, ...]
    taken: tuple[str, ...]


def rejudge(report: Mapping[str, Any], read: Callable[[str, str], bytes]) -> Rejudged:
    """Judge `report` from its samples. `read(path, sha256)` gives a recorded file by the report's name for it.

    Raises EvidenceError when a file cannot be read, UserError for a report that is damaged.
    """
    try:
        return _rejudge(report, read)
    except (UserError, EvidenceError):
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
        text = " ".join(str(error).split())[:80]
        raise UserError(
            f"report.json: damaged ({type(error).__name__}: {text}); take it from its stage again"
        ) from None


def _rejudge(report: Mapping[str, Any], read: Callable[[str, str], bytes]) -> Rejudged:
    from pipeline.gates.judge import judge

    found: dict[str, Any] = copy.deepcopy(dict(report))
    outcomes, timings = _samples(found, read)
    differences = [
        *_accuracies(found, outcomes),
        *_latencies(found, timings),
        *_comparisons(found, outcomes, timings),
        *_selection(found, outcomes),
    ]
    # As on the day of the verdict: a waiver that has run out since then had its effect.
    created = str(report.get("created") or "")[:10]
    verdict = judge(found, today=datetime.date.fromisoformat(created) if created else None)
    gates = verdict.gates()
    for before, gate in zip(report["gates"], gates, strict=False):  # in the order of the rules, here as there
        rule = f"the check {gate['rule']}"
        if (before["rule"], before.get("subject")) != (gate["rule"], gate["subject"]):
            differences.append(f"{rule} of {gate['subject']}: recorded as {before['rule']} of {before.get('subject')}")
        elif before.get("outcome") != gate["outcome"]:
            differences.append(f"{rule}: recorded {before.get('outcome')}, its samples say {gate['outcome']}")
    if len(gates) != len(report["gates"]):
        differences.append(f"recorded {len(report['gates'])} checks, its recipe asks for {len(gates)}")
    if verdict.verdict != report["verdict"]:
        differences.append(f"the verdict: recorded {report['verdict']}, its samples say {verdict.verdict}")
    return Rejudged(
        verdict=verdict.verdict,
        sentence=verdict.sentence,
        gates=gates,
        recorded=str(report["verdict"]),
        samples=len(outcomes) + len(timings),
        differences=tuple(dict.fromkeys(differences)),
        taken=_taken(found, gates, outcomes, timings),
    )


Outcomes = dict[str, dict[str, dict[str, np.ndarray]]]
Timings = dict[tuple[str, str], np.ndarray]


def _samples(report: Mapping[str, Any], read: Callable[[str, str], bytes]) -> tuple[Outcomes, Timings]:
    """Outcomes as subject -> split -> name -> (N,), and timings as (subject, kind) -> int64 (2, n): ns and blocks."""
    outcomes: Outcomes = {}
    timings: Timings = {}
    for row in report["subjects"]:
        for what, place in (row.get("stored") or {}).items():
            if what != "outcomes" and not what.startswith(LATENCY):
                continue
            path, sha256 = str(place["path"]), str(place["sha256"])
            content = read(path, sha256)
            if what == "outcomes":
                outcomes[row["name"]] = read_outcomes(content, path)
            else:
                timings[row["name"], what.removeprefix(LATENCY)] = read_timings(content, path)
    return outcomes, timings


def _accuracies(report: dict[str, Any], outcomes: Outcomes) -> Iterator[str]:
    task = _task(report)
    for row in report["subjects"]:
        found = outcomes.get(row["name"])
        if found is None:
            continue
        entry = dict(task.summary(found["test"]))
        value = task.summary(found["validation"]).get("value")
        entry |= {"validation": value}
        yield from _differ(f"{row['name']}: accuracy", row.get("accuracy") or {}, entry)
        row["accuracy"] = {**(row.get("accuracy") or {}), **entry}
        size = {len(next(iter(arrays["test"].values()))) for arrays in outcomes.values()}
        if len(size) > 1:
            yield f"{row['name']}: its outcomes and those of the others are of unequal sets of samples"


def _latencies(report: dict[str, Any], timings: Timings) -> Iterator[str]:
    from pipeline.gates.latency_evidence import evidence
    from profiles.stats import percentile_bound_ms, percentile_ms

    asked = _asked(report)
    for row in report["subjects"]:
        for entry in row.get("latency") or ():
            found = timings.get((row["name"], entry["kind"]))
            if found is None:
                continue
            samples, blocks = found
            mean_ms = float(samples.mean()) / 1e6
            figures: dict[str, Any] = {"n": len(samples), "blocks": len(np.unique(blocks)), "mean_ms": mean_ms}
            figures |= {f"{name}_ms": percentile_ms(samples, q) for name, q in (("p50", 50.0), ("p90", 90.0))}
            figures |= {"p99_ms": percentile_ms(samples, 99.0), "p90_bound_ms": percentile_bound_ms(samples, 90.0)}
            figures |= {"p99_bound_ms": percentile_bound_ms(samples, 99.0)}
            if row["name"] in asked:
                deadlines = [late["deadline_ms"] for late in entry.get("late") or ()]
                figures |= evidence(samples, blocks, deadlines)
            known = {key: value for key, value in figures.items() if key in entry}
            yield from _differ(f"{row['name']}: latency ({entry['kind']})", entry, known)
            # What was left out decides too: without `tails` a check would fall back on a less careful bound.
            entry.update(figures if entry["kind"] == "device" else known)
            if entry["kind"] == "device" and row.get("throughput_per_s") is not None:
                rate = {"throughput_per_s": entry["batch"] * 1e3 / mean_ms}
                yield from _differ(row["name"], row, rate)
                row.update(rate)


def _comparisons(report: dict[str, Any], outcomes: Outcomes, timings: Timings) -> Iterator[str]:
    task = _task(report)
    asked = _asked(report)
    for row in report["comparisons"]:
        one, other = row.get("subject"), row.get("against")
        where = f"{one} against {other}"
        if row.get("kind") == "latency":
            key = row.get("latency_kind")
            pair = timings.get((one, key)), timings.get((other, key))
            if pair[0] is None or pair[1] is None:
                continue
            figures = _ratio(row, pair[0], pair[1], bounds=key == "device" and {one, other} & asked != set())
            yield from _differ(f"{where}: latency ({key})", row, figures)
            row.update(figures)
        elif one in outcomes and other in outcomes and row.get("split", "test") in SPLITS:
            split = row.get("split", "test")
            rows = task.comparisons(outcomes[one][split], outcomes[other][split])
            found = next((new for new in rows if all(new.get(key) == row.get(key) for key in ("kind", "metric"))), None)
            if found is None:
                yield f"{where}: a comparison of kind {row.get('kind')}: recorded, but its samples give none"
                continue
            yield from _differ(where, row, found)
            row.update(found)


def _asked(report: Mapping[str, Any]) -> set[str]:
    """Whose bounds are drawn again: the subjects that a rule or a check is about, and the artifact that was chosen."""
    rules, chosen = report["recipe"].get("gate") or (), (report.get("selection") or {}).get("chosen")
    return {str(table.get("subject")) for table in (*rules, *report["gates"])} | ({str(chosen)} if chosen else set())


def _ratio(row: Mapping[str, Any], subject: np.ndarray, against: np.ndarray, *, bounds: bool) -> dict[str, Any]:
    """The figures of a latency comparison. Without `bounds` the bootstrap, which costs the most, is left out."""
    from profiles.stats import block_medians, ratio_of_block_medians

    medians = {side: block_medians(*found)[1] for side, found in (("subject", subject), ("against", against))}
    blocks_ms = {side: [float(value) for value in values / 1e6] for side, values in medians.items()}
    confidence = float(row.get("confidence") or CONFIDENCE)
    found = ratio_of_block_medians(
        medians["against"], medians["subject"], confidence=confidence, resamples=20_000 if bounds else 1
    )
    figures: dict[str, Any] = {"blocks_ms": blocks_ms, "ratio": found.value}
    if bounds:
        figures |= {"ratio_lower": found.lower, "ratio_upper": found.upper}
    return figures


def _selection(report: dict[str, Any], outcomes: Outcomes) -> Iterator[str]:
    """Which artifact is judged, chosen again on the validation split."""
    from pipeline.gates.rules import rule_of
    from pipeline.gates.selection import select

    if not outcomes or not isinstance(report.get("selection"), Mapping):
        return
    task = _task(report)
    wanted = {(row.get("subject"), row.get("against")) for row in report["comparisons"] if row["kind"] != "latency"}
    validation = [
        {"kind": row["kind"], "subject": one, "against": other, "split": "validation", **row}
        for one, other in sorted(wanted, key=str)
        if one in outcomes and other in outcomes
        for row in task.comparisons(outcomes[one]["validation"], outcomes[other]["validation"])
    ]
    try:
        rules = [rule_of(rule) for rule in report["recipe"].get("gate") or ()]
    except ValueError as error:
        raise RecipeError(f"recipe.gate: {error}") from None
    found = select(report, rules, validation)
    if found["chosen"] != report["selection"].get("chosen"):
        yield f"the artifact judged: recorded {report['selection'].get('chosen')}, its samples choose {found['chosen']}"
    report["selection"] = {**report["selection"], "chosen": found["chosen"]}


def _taken(
    report: Mapping[str, Any], gates: list[dict[str, Any]], outcomes: Outcomes, timings: Timings
) -> tuple[str, ...]:
    """What the checks read and no sample here tells."""
    taken = [gate["metric"] for gate in gates if gate["metric"] in OUTSIDE]
    for row in report["subjects"]:
        taken += [
            f"{LATENCY}{entry['kind']} of {row['name']}"
            for entry in row.get("latency") or ()
            if entry["kind"] != "first" and (row["name"], entry["kind"]) not in timings
        ]
        if row.get("accuracy") and row["name"] not in outcomes:
            taken.append(f"accuracy of {row['name']}")
    return tuple(dict.fromkeys(taken))


def _task(report: Mapping[str, Any]) -> Any:
    from pipeline.tasks import TASKS, task_of

    name = (report.get("task") or {}).get("name") or report["recipe"].get("task", "classification")
    if name not in TASKS:
        raise UserError(f"report.json: its task {str(name)[:40]!r} is not known; use the edgestill that wrote it")
    return task_of(name)


def _differ(where: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for key, value in found.items():
        before = recorded.get(key)
        if not _same(before, value):
            yield f"{where}: {key}: recorded {_short(before)}, its samples give {_short(value)}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)) and bool not in (type(one), type(other)):
        return bool(one == other) or math.isclose(one, other, rel_tol=RELATIVE, abs_tol=1e-12)
    return type(one) is type(other) and bool(one == other)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
