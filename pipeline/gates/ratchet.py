"""The ratchet: a new release against the last one. No rule may be weaker, and what was right should stay right.

The chosen artifacts of both are paired over their recorded per-sample outcomes, where both were judged on the same
data; the last one joins the report under the name `last-release`, so that any rule may be asked against it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.gates.rules import Rule, describe, parse_limit, rule_of

LAST = "last-release"
# Asked where the rules themselves ask nothing against the last release: at most 1 point worse, at most 2 % of answers
# turned wrong. A rule of the recipe with against = "last-release" takes the place of the one with its metric.
DEFAULTS = {
    "accuracy_drop": {"metric": "accuracy_drop", "against": LAST, "max": "1.0pt"},
    "flip_rate": {"metric": "flip_rate", "against": LAST, "max": "2%"},
}


def weaker(new: Sequence[Rule], last: Sequence[Rule]) -> list[str]:
    """Rules of the last release that the new one dropped or loosened, one line each."""
    found = []
    for before in last:
        key = _asked(before)
        limit = parse_limit(before)
        now = [parse_limit(rule) for rule in new if _asked(rule) == key]
        sign = 1.0 if limit.direction == "max" else -1.0
        alike = [other for other in now if other.unit == limit.unit]
        if not now:
            found.append(f"{describe(before)}: the last release had this rule, the new one has not")
        elif not any(sign * other.value <= sign * limit.value for other in alike):
            found.append(f"{describe(before)}: the new limit is weaker ({', '.join(other.text for other in now)})")
    return found


def _asked(rule: Rule) -> tuple[Any, ...]:
    return rule.metric, rule.against, rule.subject, rule.slice, rule.deadline_ms


def rules_of(report: Mapping[str, Any], where: str) -> list[Rule]:
    """The rules of a report's recipe. Raises `UserError`, one line."""
    try:
        return [rule_of(rule) for rule in (report.get("recipe") or {}).get("gate") or ()]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: its rules cannot be read ({error}); give another release") from None


def added(rules: Sequence[Rule], task: str) -> list[Rule]:
    """`rules`, with the defaults against the last release that they leave out; classification only."""
    asked = {rule.metric for rule in rules if rule.against == LAST}
    extra = [rule_of(table) for metric, table in DEFAULTS.items() if metric not in asked]
    return [*rules, *(extra if task == "classification" else ())]


def joined(new: Mapping[str, Any], new_run: Path, last: Mapping[str, Any], last_run: Path) -> dict[str, Any]:
    """`new` with the last release among its subjects and compared with the artifact that is judged.

    Raises `UserError`, one line, where they cannot be paired: other data, no recorded outcomes, no chosen artifact.
    """
    from pipeline.sample_files import EvidenceError, read_outcomes
    from pipeline.tasks import TASKS, task_of

    prints = [(report.get("data") or {}).get("fingerprint") for report in (new, last)]
    if not prints[0] or prints[0] != prints[1]:
        raise UserError(
            f"{last_run}: judged on other data ({str(prints[1])[:12]}, not {str(prints[0])[:12]}); answers cannot be "
            "paired. Judge the last release again on the new data"
        )
    chosen = [_chosen(report, run) for report, run in ((new, new_run), (last, last_run))]
    found = []
    for row, run in zip(chosen, (new_run, last_run), strict=True):
        place = (row.get("stored") or {}).get("outcomes")
        if not isinstance(place, Mapping):
            raise UserError(f"{run}: the outcomes of {row['name']} were not kept, so they cannot be paired")
        try:
            found.append(read_outcomes(_read(run, str(place["path"]), str(place["sha256"])), f"{run}: {place['path']}"))
        except (EvidenceError, KeyError) as error:
            raise UserError(f"{run}: {error}; take the run from its folder again") from None
    name = str((new.get("recipe") or {}).get("task") or "classification")
    if name not in TASKS:
        raise UserError(f"{new_run}: unknown task {name!r}; use the edgestill that made it")
    ours, theirs = (outcomes["test"] for outcomes in found)
    sizes = [len(next(iter(outcomes.values()))) for outcomes in (ours, theirs)]
    if sizes[0] != sizes[1] or ("label" in ours and "label" in theirs and (ours["label"] != theirs["label"]).any()):
        raise UserError(f"{last_run}: its {sizes[1]:,} test samples are not those of {new_run} ({sizes[0]:,})")
    pairs = [
        {**row, "subject": chosen[0]["name"], "against": LAST, "split": "test"}
        for row in task_of(name).comparisons(ours, theirs)
    ]
    subject = {**chosen[1], "name": LAST, "role": "artifact"}
    return {
        **new,
        "subjects": [*new["subjects"], subject],
        "comparisons": [*new["comparisons"], *pairs],
    }


def _chosen(report: Mapping[str, Any], run: Path) -> Mapping[str, Any]:
    name = (report.get("selection") or {}).get("chosen")
    row = next((row for row in report["subjects"] if row["name"] == name), None)
    if row is None:
        raise UserError(f"{run}: it chose no artifact, so there is nothing to compare")
    return row


def _read(run: Path, name: str, sha256: str) -> bytes:
    """A recorded file of a run, wherever that lies; nothing outside of it. Raises UserError."""
    folder = run if run.is_dir() else run.parent
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{run}: {name[:60]!r} lies outside of it; take the run from its folder again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); keep the folder of the run") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: is not the file that its report names; take the run from its folder again")
    return content
