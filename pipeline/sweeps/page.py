"""sweep.html: the table of a sweep and a dot plot over seeds, one self-contained page in the style of report.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipeline.quantities import ABSENT, show, signed
from pipeline.reports.charts import LETTER, ticks
from pipeline.reports.task_words import words_of
from pipeline.sweeps.table import best

ROW, HEAD = 34, 26  # px of a row of the plot, and above the first one
WIDTHS = {"wide": 1000, "narrow": 326}
_LONGEST = 300  # px at most for the names beside the rows


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mean with its interval and the single seeds, in px; `title` is its tooltip."""

    kind: str
    y: float
    x: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    title: str


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One point of the sweep in the plot."""

    name: str
    x: float
    y: float
    marks: tuple[Mark, ...]
    best: bool


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Everything that the template draws, in px."""

    width: float
    height: float
    left: float
    right: float
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    teacher: float | None  # where its line stands; None where it differs by point or lies outside
    taught: str
    title: str  # of the axis, and its unit after a comma
    unit: str


def render(document: Mapping[str, Any]) -> str:
    """The page of a sweep.json."""
    from pipeline.reports.report import facts_of, stylesheet, template_environment

    rows = document["points"]
    done = [row for row in rows if row["status"] == "done"]
    first = best(rows)
    data = document["data"] or {}
    return (
        template_environment(True)
        .get_template("sweep.html.j2")
        .render(
            css=stylesheet(),
            sweep=document,
            created=str(document["created"]).replace("T", " ")[:16],
            headline=headline(rows),
            rows=[cells(row, row is first) for row in rows],
            failed=[row for row in rows if row["status"] == "failed"],
            plots={name: plot(done, first, width) for name, width in WIDTHS.items()} if done else {},
            seeds=max((len(row["seeds"]) for row in done), default=0),
            n=done[0]["n"] if done else None,
            words=words_of(done[0] if done else {}),
            spent=show(sum(row["added_s"] for row in done), "s"),
            saved=show(document["saved_s"], "s") if document["saved_s"] > 0 else "",
            facts=facts_of(document["environment"] or {}),
            packages=sorted(((document["environment"] or {}).get("packages") or {}).items()),
            data=data,
            sizes=data.get("sizes") or {},
        )
    )


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how far it is, and which point is best."""
    done = sum(row["status"] == "done" for row in rows)
    first = best(rows)
    state = f"{done} of {len(rows)} points done" if done < len(rows) else f"{len(rows)} point{'s' * (len(rows) > 1)}"
    if first is None:
        return f"{state}."
    gain = first["gain_pt"]
    words = words_of(first)
    over = "" if gain is None else f", {words.change(gain['mean'])} against its control"
    return f"{state}; most accurate is {first['name']}: {words.value(first['accuracy']['mean'])}{over}."


def cells(row: Mapping[str, Any], is_best: bool) -> dict[str, Any]:
    """The texts of a row: (column, text, small print)."""
    link = f"{quote(row['slug'])}/report.html" if row["status"] == "done" else ""
    made = {"name": row["name"], "link": link, "best": is_best, "status": row["status"], "verdict": row["verdict"]}
    if row["status"] != "done":
        return made | {"figures": []}
    accuracy, gain, smaller = row["accuracy"], row["gain_pt"], row["compression"]
    share, words = row["teacher_share"], words_of(row)
    gpu = f"; GPU {show(row['peak_cuda_bytes'], 'bytes')}, {row['peak_cuda_stage']}" if row["peak_cuda_bytes"] else ""
    return made | {
        "figures": [
            (words.noun, *spread(accuracy, words.show, show)),
            ("gain", *spread(gain, words.unit, signed)),
            ("artifact", words.value(row["artifact_accuracy"]), (row["artifact"] or "").replace("@", " @")),
            ("params", show(smaller["params"], "x"), show(row["params"])),
            ("MACs", show(smaller["macs"], "x"), show(row["macs"])),
            ("size", show(smaller["bytes"], "x"), show(row["size_bytes"], "bytes")),
            ("an epoch", show(row["s_per_epoch"], "s"), ""),
            ("time", show(row["total_s"], "s"), f"own {show(row['added_s'], 's')}"),
            ("teacher", ABSENT if share is None else f"{100 * share:.0f} %", ""),
            ("peak RAM", show(row["peak_memory_bytes"], "bytes"), f"{row['peak_memory_stage'] or ''}{gpu}"),
        ]
    }


def spread(found: Mapping[str, Any] | None, unit: str, written: Callable[[Any, str], str]) -> tuple[str, str]:
    """The mean with its deviation, and the interval; `written` is `show`, or `signed` for differences."""
    if found is None:
        return ABSENT, ""
    mean = written(found["mean"], unit)
    if found["std"] is None:
        return mean, "one seed"
    number, _, sign = mean.partition(" ")
    std = show(found["std"], unit).partition(" ")[0]
    low, high = (written(end, unit).partition(" ")[0] for end in found["ci95"])
    return f"{number} \u00b1 {std} {sign}", f"{low} to {high}"


def plot(rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any] | None, width: int) -> Plot:
    """Accuracy of student and control, a lane a point; names beside the lanes, or above them where it is narrow."""
    narrow = width < 500
    names = 0 if narrow else min(_LONGEST, LETTER * max(len(row["name"]) for row in rows) + 16)
    left, right = names + 8, width - 12
    low, high = bounds(rows)
    words = words_of(rows[0])

    def at(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    lanes = []
    step = ROW + 16 * narrow
    for i, row in enumerate(rows):
        middle = HEAD + i * step + step / 2 + 8 * narrow
        marks = tuple(
            mark(row, kind, values, at, middle + shift)
            for kind, values, shift in (("control", row["control"], 6), ("student", row["accuracy"], -6))
            if values is not None
        )
        lanes.append(
            Lane(
                name=_cut(row["name"], (right if narrow else names) / LETTER),
                x=0,
                y=middle - 16 if narrow else middle + 4,
                marks=marks,
                best=row is first,
            )
        )
    taught = {row["teacher_accuracy"] for row in rows}
    teacher = taught.pop() if len(taught) == 1 else None
    return Plot(
        width=width,
        height=HEAD + len(rows) * step + 30,
        left=left,
        right=right,
        lanes=tuple(lanes),
        ticks=tuple((at(value), f"{words.factor * value:g}") for value in ticks(low, high, 5 if narrow else 9)),
        teacher=at(teacher) if teacher is not None and low <= teacher <= high else None,
        taught="" if teacher is None else words.value(teacher),
        title=words.title,
        unit=words.axis.removeprefix(words.title),
    )


def bounds(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The axis: all seeds; the teacher and intervals as far as half of that range beyond it, then cut."""
    single = [seed[key] for row in rows for seed in row["seeds"] for key in ("student", "control")]
    known = [value for value in single if value is not None]
    low, high = min(known), max(known)
    room = 0.5 * ((high - low) or 0.02)
    near = [row["teacher_accuracy"] for row in rows if low - room <= row["teacher_accuracy"] <= high + room]
    low, high = min([low, *near]), max([high, *near])
    ends = [end for row in rows for key in ("accuracy", "control") for end in (row[key] or {}).get("ci95") or ()]
    low, high = max(low - room, min([low, *ends])), min(high + room, max([high, *ends]))
    pad = 0.04 * ((high - low) or 0.02)
    return low - pad, high + pad


def mark(row: Mapping[str, Any], kind: str, values: Mapping[str, Any], at: Any, y: float) -> Mark:
    mean, interval = spread(values, words_of(row).show, show)
    return Mark(
        kind=kind,
        y=y,
        x=at(values["mean"]),
        low=at(values["ci95"][0]) if values["ci95"] else None,
        high=at(values["ci95"][1]) if values["ci95"] else None,
        seeds=tuple(at(seed[kind]) for seed in row["seeds"]),
        title=f"{row['name']}, {kind}: {mean} ({interval})",
    )


def _cut(text: str, letters: float) -> str:
    return text if len(text) <= letters else f"{text[: max(1, int(letters) - 1)]}\u2026"
