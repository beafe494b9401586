"""`edgestill compare`: one table and one Pareto picture over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.arguments import json_option
from pipeline.cli.output import console, plain, print_json, reads, say_next, table
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.reports.charts import Point


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject of one run; what was not measured is None. `run` is the shortest name that tells runs apart.

    accuracy: the task's own metric in `unit`, which `axis` names."""

    run: str
    subject: str
    role: str
    chosen: bool
    verdict: str
    accuracy: float | None
    accuracy_n: int | None
    p50_ms: float | None
    size_bytes: int | None
    peak_memory_bytes: int | None
    macs: int | None
    unit: str = "fraction"
    axis: str = "top-1 accuracy, %"


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--all", "everything", is_flag=True, help="Every artifact, not only the one each run chose.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write table and Pareto picture to this page.")
@json_option
@reads("runs")
def compare(runs: tuple[str, ...], everything: bool, page: Path | None, as_json: bool) -> None:
    """Put RUNS, folders with a report.json or such files, into one table: teacher, student, chosen artifact.

    Accuracies of different test images, and latencies of different machines or settings, are not compared: those
    columns are then left empty and the difference is named.
    """
    from pipeline.reports.report import load

    if len(runs) < 2:
        raise UserError(f"{''.join(runs)}: one run; name at least two to compare")
    reports = dict(zip(names(runs), [load(run) for run in runs], strict=True))
    unlike = differences(reports)
    rows = [row for name, report in reports.items() for row in rows_of(name, report, everything, unlike)]
    best = frontier(rows)
    if page:
        from pipeline.atomic import write_text

        write_text(page, as_html(rows, unlike))
    if as_json:
        print_json(plain({"rows": [asdict(row) for row in rows], "pareto": best, "not_compared": unlike}))
        return
    show_rows(rows, best, unlike)
    if page:
        click.echo(f"wrote {page}")
    say_next(f"edgestill report {runs[0]}" if page else f"edgestill compare {' '.join(runs)} --html compare.html")


def names(runs: Sequence[str]) -> list[str]:
    """The last folder of each path, or the whole path where that does not tell the runs apart."""
    paths = [Path(run).resolve() for run in runs]
    short = [(path if path.is_dir() else path.parent).name for path in paths]
    chosen = short if len(set(short)) == len(short) else [str(run) for run in runs]
    if len(set(chosen)) < len(chosen):
        twice = next(name for i, name in enumerate(chosen) if name in chosen[:i])
        raise UserError(f"{twice}: named twice; name each run once")
    return chosen


def differences(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Column -> why it must not be compared over these runs; empty when all were judged and measured alike."""
    found = {}
    for column, facts in (("accuracy", _test_set), ("latency", _conditions)):
        each = {name: facts(report) for name, report in reports.items()}
        for key in next(iter(each.values())):
            values = {name: told[key] for name, told in each.items()}
            if len({str(value) for value in values.values()}) > 1:
                told = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
                found[column] = f"{key} differs: {told}"
                break
    return found


def _test_set(report: Mapping[str, Any]) -> dict[str, Any]:
    from pipeline.reports.task_words import words_of

    data = report["data"]
    return {
        "data set": data.get("name"),
        "content of the data": data.get("fingerprint"),
        "number of test images": (data.get("sizes") or {}).get("test"),
        "metric": words_of(report).metric,
    }


def _conditions(report: Mapping[str, Any]) -> dict[str, Any]:
    profile, environment = report["recipe"].get("profile") or {}, report["environment"]
    machine = environment.get("machine")
    machine = machine if isinstance(machine, Mapping) else {}
    return {
        "device": profile.get("device"),
        "processor": machine.get("cpu") or environment.get("cpu"),
        "governor": machine.get("governor"),
        "power source": machine.get("on_ac_power"),
        "number of threads": profile.get("threads"),
        "batch": sorted({entry.get("batch") for s in report["subjects"] for entry in s.get("latency") or ()}),
        "image size": report["data"].get("image_shape"),
    }


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text


def rows_of(name: str, report: Mapping[str, Any], everything: bool, unlike: Mapping[str, str]) -> list[Row]:
    """Teacher, student and the chosen artifact (or all); columns in `unlike` are left out."""
    from pipeline.gates.judge import UnmeasuredError, subject_of
    from pipeline.gates.latency import baseline, latency_of
    from pipeline.reports.task_words import words_of

    chosen = (report.get("selection") or {}).get("chosen")
    try:  # the teacher on the artifact's own runtime: eager torch is a weak baseline
        teacher = baseline(report, subject_of(report, str(chosen)), "teacher")
    except UnmeasuredError:
        teacher = "teacher"
    rows = []
    for subject in report["subjects"]:
        if not everything and subject["name"] not in (teacher, "student", chosen):
            continue
        try:
            p50_ms = latency_of(subject).get("p50_ms")
        except UnmeasuredError:
            p50_ms = None
        accuracy = subject.get("accuracy") or {}
        rows.append(
            Row(
                run=name,
                subject=subject["name"],
                role=str(subject.get("role")),
                chosen=subject["name"] == chosen,
                verdict=report["verdict"],
                accuracy=None if "accuracy" in unlike else accuracy.get("value"),
                accuracy_n=accuracy.get("n"),
                unit=words_of(report).show,
                axis=words_of(report).axis,
                p50_ms=None if "latency" in unlike else p50_ms,
                size_bytes=subject.get("size_bytes"),
                peak_memory_bytes=subject.get("peak_memory_bytes"),
                macs=subject.get("macs"),
            )
        )
    return rows


def points(rows: Sequence[Row]) -> list[Point]:
    from pipeline.reports.charts import Point

    return [
        Point(label=_label(row), x=row.p50_ms, y=row.accuracy, kind=row.role, chosen=row.chosen)
        for row in rows
        if row.p50_ms and row.accuracy is not None
    ]


def frontier(rows: Sequence[Row]) -> list[str]:
    """`RUN SUBJECT` of those that no other one beats in both speed and accuracy, fastest first."""
    from pipeline.reports.charts import frontier as of_points

    return [point.label for point in of_points(points(rows))]


def _label(row: Row) -> str:
    return f"{row.run} {row.subject}"


COLUMNS = ("accuracy", "p50", "size", "memory", "MACs")


def _texts(row: Row) -> tuple[str, ...]:
    from pipeline.quantities import show

    return (
        show(row.accuracy, row.unit),
        show(row.p50_ms, "ms"),
        show(row.size_bytes, "bytes"),
        show(row.peak_memory_bytes, "bytes"),
        show(row.macs),
    )


def show_rows(rows: Sequence[Row], best: Sequence[str], unlike: Mapping[str, str]) -> None:
    from rich.text import Text

    colours = {"released": "green", "refused": "red", "undecided": "yellow"}
    made = table("run", "subject", "verdict", *COLUMNS, "Pareto", right=COLUMNS)
    for row in rows:
        verdict = Text(row.verdict, colours[row.verdict]) if row.chosen else Text("")
        style = "bold" if row.chosen else "dim"
        mark = "\u2605" if _label(row) in best else ""
        made.add_row(Text(row.run), Text(row.subject), verdict, *_texts(row), mark, style=style)
    console().print(made)
    for column, why in unlike.items():
        click.echo(f"note: {column} is not compared: {why}")
    if best:
        click.echo("\u2605 no other one is both faster and more accurate")


def as_html(rows: Sequence[Row], unlike: Mapping[str, str]) -> str:
    """One self-contained page in the style of report.html."""
    from pipeline.reports import charts, report

    style = Path(report.__file__).with_name("templates").joinpath("report.css").read_text(encoding="utf-8")
    drawn = points(rows)
    axis = {"axis": rows[0].axis, "unit": rows[0].unit} if drawn else {}
    sizes = {"wide": (1000, 420), "narrow": (326, 380)}
    pictures = [
        f'<div class="{css}">{charts.pareto(drawn, width=wide, height=high, everyone=css == "wide", **axis)}</div>'
        for css, (wide, high) in (sizes if drawn else {}).items()
    ]
    left = ' style="text-align:left"'
    head = "".join(f"<th{left}>{name}</th>" for name in ("run", "subject", "verdict"))
    head += "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{left}>{escape(text)}</td>" for text in (row.run, row.subject, row.verdict if row.chosen else "")
        )
        + "".join(f'<td class="num">{escape(text)}</td>' for text in _texts(row))
        + "</tr>"
        for row in rows
    )
    notes = "".join(f"<p>{escape(f'{column} is not compared: {why}')}</p>" for column, why in unlike.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>edgestill: runs compared</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head>\n<body><main><h1>Runs compared</h1>\n"
        f'<div class="card">{"".join(pictures)}</div>\n'
        '<div class="card" style="overflow-x:auto">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
        f"{notes}</main></body></html>\n"
    )
