"""The ledger: a report's subjects as rows for people, and the chain from teacher to artifact. Text only, no markup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.gates.counts import pairs_of
from pipeline.gates.intervals import Interval, paired_difference
from pipeline.gates.intervals_mean import mean_bounds, moments_of
from pipeline.gates.judge import UnmeasuredError, comparisons, subject_of
from pipeline.gates.latency import KIND, baseline, latency_of
from pipeline.quantities import ABSENT, show
from pipeline.reports.task_words import Words, words_of

RUNTIME_NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FIELD_NAMES = {
    "energy_j": "energy",
    "peak_memory_bytes": "peak memory",
    "throughput_per_s": "throughput",
    "size_bytes": "size",
}
READING = 0.975  # one-sided, so that both bounds together are the 95 % interval that people read

# What a form of int8 is made for, after the precision in the name of an artifact.
FORM_WORDS = {"cpu": "for CPU", "gpu": "for GPU", "trt86": "for TensorRT 8.6", "nncf": "by NNCF"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject. Texts are ready to print; numbers beside them are for charts and may be None."""

    number: int
    name: str
    role: str
    title: str
    runtime: str
    precision: str
    chosen: bool
    accuracy: float | None
    accuracy_text: str
    accuracy_ci: str
    change_text: str
    change_ci: str
    size_bytes: float | None
    size_text: str
    p50_ms: float | None
    p50_text: str
    p90_text: str
    speedup_text: str
    speedup_ci: str
    speedup_against: str
    memory_text: str
    macs_text: str
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One step of the chain: what it is, where it stands, and what the step cost in accuracy."""

    title: str
    detail: str
    chosen: bool
    accuracy: str
    change: str
    tone: str
    p50: str
    size: str


def rows(report: Mapping[str, Any]) -> list[Row]:
    """One row a subject, in the report's order: teacher, generations, control, student, artifacts."""
    return [_row(report, subject, i + 1) for i, subject in enumerate(report["subjects"])]


def title_of(subject: Mapping[str, Any]) -> str:
    """The subject in words: `Teacher`, `Student`, `int8 for CPU`, `int8, float layers`."""
    role, name = str(subject.get("role")), str(subject["name"])
    if role == "artifact":
        precision = str(subject.get("precision"))
        form, *rungs = name.partition("@")[0].partition(f"-{precision}")[2].removeprefix("-").split("-")
        title = f"{precision} {FORM_WORDS[form]}" if form in FORM_WORDS else precision
        more = " ".join(rungs if form in FORM_WORDS else (form, *rungs))
        return f"{title}, {more}" if more else title
    if role == "generation":
        return f"Generation {name.removeprefix(role)}"
    return {"teacher": "Teacher", "control": "Control", "student": "Student"}.get(role, name)


def _row(report: Mapping[str, Any], subject: Mapping[str, Any], number: int) -> Row:
    words = words_of(report)
    accuracy = subject.get("accuracy") or {}
    ci = accuracy.get("ci95") or (None, None)
    change, change_ci = _change(report, subject, "teacher")
    try:
        latency: Mapping[str, Any] = latency_of(subject)
    except UnmeasuredError:
        latency = {}
    speedup, speedup_ci, against = _speedup(report, subject)
    return Row(
        number=number,
        name=str(subject["name"]),
        role=str(subject.get("role")),
        title=title_of(subject),
        runtime=RUNTIME_NAMES.get(str(subject.get("runtime")), str(subject.get("runtime"))),
        precision=str(subject.get("precision")),
        chosen=subject["name"] == (report.get("selection") or {}).get("chosen"),
        accuracy=accuracy.get("value"),
        accuracy_text=words.value(accuracy.get("value")),
        accuracy_ci=words.bare(_span(ci[0], ci[1], words.show)),
        change_text=change,
        change_ci=change_ci,
        size_bytes=subject.get("size_bytes"),
        size_text=show(subject.get("size_bytes"), "bytes"),
        p50_ms=latency.get("p50_ms"),
        p50_text=show(latency.get("p50_ms"), "ms"),
        p90_text=show(latency.get("p90_ms"), "ms"),
        speedup_text=speedup,
        speedup_ci=speedup_ci,
        speedup_against=against,
        memory_text=show(subject.get("peak_memory_bytes"), "bytes"),
        macs_text=show(subject.get("macs")),
        missing={str(key): str(why) for key, why in (subject.get("missing") or {}).items()},
    )


def _span(lower: Any, upper: Any, unit: str) -> str:
    low, high = show(lower, unit), show(upper, unit)
    if ABSENT in (low, high):
        return ""
    return f"{low} to {high}".replace(" %", "").replace("\u00d7", "")


def _change(report: Mapping[str, Any], subject: Mapping[str, Any], against: str) -> tuple[str, str]:
    """The task's metric against another subject, in its unit, with the 95 % interval of paired samples."""
    if subject["name"] == against:
        return ABSENT, ""
    words = words_of(report)
    try:
        gain = _gained(report, subject, against, words)
    except (UnmeasuredError, ValueError):
        return ABSENT, ""
    return words.change(gain.value), words.bare(f"{words.change(gain.lower)} to {words.change(gain.upper)}")


def _gained(report: Mapping[str, Any], subject: Mapping[str, Any], against: str, words: Words) -> Interval:
    """In the unit of a difference. Raises UnmeasuredError or ValueError for what was not compared."""
    if words.pictures:
        for row in comparisons(report, "metric", subject=subject["name"], against=against, split="test"):
            if row.get("metric") == words.metric:
                return mean_bounds(moments_of(row), READING)
        raise UnmeasuredError(f"{words.metric} of {subject['name']} and {against} was not compared")
    drop = paired_difference(pairs_of(report, subject, against)[0], READING)
    return Interval(value=-100 * drop.value, lower=-100 * drop.upper, upper=-100 * drop.lower)


def _speedup(report: Mapping[str, Any], subject: Mapping[str, Any]) -> tuple[str, str, str]:
    try:
        other = baseline(report, subject, "teacher")
    except UnmeasuredError:
        return ABSENT, "", ""
    for row in comparisons(report, "latency", subject=subject["name"], against=other, latency_kind=KIND):
        return show(row.get("ratio"), "x"), _span(row.get("ratio_lower"), row.get("ratio_upper"), "x"), other
    return ("1\u00d7" if other == subject["name"] else ABSENT), "", other


def chain(report: Mapping[str, Any]) -> list[Hop]:
    """From the teacher over generations and student to every form on the runtime of the chosen artifact, else of the
    first one."""
    subjects = {str(subject["name"]): subject for subject in report["subjects"]}
    artifacts = [subject for subject in subjects.values() if subject.get("role") == "artifact"]
    chosen = subjects.get(str((report.get("selection") or {}).get("chosen")))
    runtime = (chosen or (artifacts[0] if artifacts else {})).get("runtime")
    between = [name for name, subject in subjects.items() if subject.get("role") == "generation"]
    path = [subjects[name] for name in ("teacher", *between, "student") if name in subjects]
    path += [subject for subject in artifacts if subject.get("runtime") == runtime]
    # the released form is the end of the chain, whatever order the subjects were measured in
    path.sort(key=lambda subject: subject is chosen)
    return [_hop(report, subject, path[i - 1] if i else None, subject is chosen) for i, subject in enumerate(path)]


def _hop(report: Mapping[str, Any], subject: Mapping[str, Any], before: Mapping[str, Any] | None, chosen: bool) -> Hop:
    # the teacher's speed is shown on the runtime it is compared on, not as eager torch
    timed = subject
    if subject.get("role") == "teacher":
        picked = (report.get("selection") or {}).get("chosen")
        try:
            timed = subject_of(report, baseline(report, subject_of(report, str(picked)), "teacher"))
        except UnmeasuredError:
            timed = subject
    try:
        p50 = show(latency_of(timed).get("p50_ms"), "ms")
    except UnmeasuredError:
        p50 = ABSENT
    now, then = (None if s is None else (s.get("accuracy") or {}).get("value") for s in (subject, before))
    words = words_of(report)
    gap = None if now is None or then is None else words.gap(now, then)
    tone = "flat" if gap is None or abs(gap) < words.flat else ("up" if gap > 0 else "down")
    return Hop(
        title=title_of(subject),
        detail=RUNTIME_NAMES.get(str(timed.get("runtime")), str(timed.get("runtime"))),
        chosen=chosen,
        accuracy=words.value(now),
        change="" if before is None else words.bare(words.change(gap)) if words.pictures else words.change(gap),
        tone=tone,
        p50=p50,
        size=show(subject.get("size_bytes"), "bytes"),
    )


def not_measured(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(field, reason, subjects) of everything that was not measured, each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for subject in report["subjects"]:
        for key, why in (subject.get("missing") or {}).items():
            found.setdefault((FIELD_NAMES.get(key, str(key)), str(why)), []).append(str(subject["name"]))
    every = len(report["subjects"])
    return [
        (key, why, "all subjects" if len(names) == every > 1 else ", ".join(names))
        for (key, why), names in found.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline figure of the chosen artifact, and how it stands to the teacher."""

    name: str
    value: str
    against: str
    tone: str


def tiles(report: Mapping[str, Any]) -> list[Tile]:
    """Accuracy, latency, size, memory and MACs of the chosen artifact; empty when none was chosen."""
    found = rows(report)
    row = next((row for row in found if row.chosen), None)
    if row is None:
        return []
    subject, teacher = subject_of(report, row.name), _teacher(report, row)
    change = f"{row.change_text} against the teacher" if row.change_text != ABSENT else "not compared"
    speed = f"{row.speedup_text} as fast as the teacher" if row.speedup_text != ABSENT else "not compared"
    return [
        Tile(name=words_of(report).title, value=row.accuracy_text, against=change, tone="accuracy"),
        Tile(name="median latency", value=row.p50_text, against=speed, tone="latency"),
        *(
            Tile(
                name=name,
                value=show(subject.get(key), unit),
                against=_times(subject.get(key), teacher.get(key)),
                tone=key,
            )
            for name, key, unit in (
                ("file size", "size_bytes", "bytes"),
                ("peak memory", "peak_memory_bytes", "bytes"),
                ("MACs a tile" if words_of(report).pictures else "MACs an image", "macs", ""),
            )
        ),
    ]


def _teacher(report: Mapping[str, Any], row: Row) -> Mapping[str, Any]:
    """The teacher's form on the same runtime, for fair sizes and memory; else the teacher itself; else nothing."""
    for name in (row.speedup_against, "teacher"):
        try:
            return subject_of(report, name)
        except UnmeasuredError:
            continue
    return {}


def _times(ours: Any, theirs: Any) -> str:
    if show(ours) == ABSENT or show(theirs) == ABSENT or not ours or not theirs:
        return "not compared"
    times = show(max(ours, theirs) / min(ours, theirs), "x")
    if times == show(1.0, "x"):
        return "the same as the teacher"
    return f"{times} {'less' if ours < theirs else 'more'} than the teacher"
