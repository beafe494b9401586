"""report.json -> report.html, report.md and the ledger in the terminal. Reads a report; decides nothing."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.gates.counts import told_beside
from pipeline.gates.rules import heading
from pipeline.quantities import ABSENT, show, signed
from pipeline.reports import charts, ledger
from pipeline.reports.ladder_view import ladder_view, terminal_lines
from pipeline.reports.task_words import words_of

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import Console

SCHEMA_VERSION = 1
NEEDED: dict[str, type] = {
    "recipe": dict,
    "environment": dict,
    "data": dict,
    "subjects": list,
    "comparisons": list,
    "gates": list,
    "verdict": str,
}
VERDICTS = {
    "released": ("Released", "\u2713", "It may be shipped: every limit holds, each with 99 % confidence."),
    "refused": ("Refused", "\u2715", "It may not be shipped: a limit is broken, with 99 % confidence."),
    "undecided": ("Undecided", "?", "It may not be shipped yet: the measurements cannot tell."),
}
NEXT = {
    "released": "edgestill predict {path} FOLDER_OF_IMAGES",
    "refused": "change the recipe or its limits, then: {command}",
    "undecided": "measure more or give a [[gate]] rule that can be decided, then: {command}",
}


def load(path: str | Path) -> dict[str, Any]:
    """Read report.json (or the folder that holds it). Raises `UserError`, one line, for anything that is no report."""
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such report; make one with 'edgestill run RECIPE'") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give the report.json of a run") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(
            f"{path}: damaged or cut short ({where}); run the recipe again, fresh stages are kept"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    check(report, str(path))
    return report


def check(report: Any, where: str) -> None:
    """Refuse what is not a report, with one line; the full check is report.schema.json's. Raises `UserError`."""
    if not isinstance(report, dict):
        raise UserError(f"{where}: holds a {type(report).__name__}, not a report; give the report.json of a run")
    version = report.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema_version is {version!r}, not {SCHEMA_VERSION}; use the edgestill that wrote it"
        )
    for key, kind in NEEDED.items():
        if not isinstance(report.get(key), kind):
            got = "is missing" if key not in report else f"is a {type(report[key]).__name__}"
            raise UserError(f"{where}: not a report: {key!r} {got}; give the report.json of a run")
    if report["verdict"] not in VERDICTS:
        raise UserError(f"{where}: verdict is {report['verdict']!r}; known: {', '.join(VERDICTS)}")
    for i, subject in enumerate(report["subjects"]):
        if not isinstance(subject, dict) or not isinstance(subject.get("name"), str):
            raise UserError(f"{where}: subjects.{i} has no name; run the recipe again")


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of report.json."""
    return json.loads(Path(__file__).with_name("report.schema.json").read_text(encoding="utf-8"))


def headline(report: Mapping[str, Any]) -> str:
    """One sentence on the verdict, from the checks that stand in the report."""
    checks, chosen = report["gates"], (report.get("selection") or {}).get("chosen")
    who = chosen or "no artifact"
    if not checks:
        return "The recipe has no [[gate]] rule, so nothing was judged."
    waived = sum("waived" in check for check in checks)
    bad = [c for c in checks if c["outcome"] == ("fail" if report["verdict"] == "refused" else "undecided")]
    bad = [check for check in bad if "waived" not in check]
    if report["verdict"] == "released" and waived:
        return f"{who} keeps {len(checks) - waived} of {len(checks)} limits; the rest is waived."
    if report["verdict"] == "released":
        return f"{who} keeps {'its one limit' if len(checks) == 1 else f'all {len(checks)} limits'}."
    verb = "breaks" if report["verdict"] == "refused" else "cannot be judged on"
    return f"{who} {verb} {len(bad)} of {len(checks)} limits."


@functools.cache
def template_environment(autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).with_name("templates")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(show=show, signed=signed, cell=_cell, heading=heading, interval=_interval)
    return environment


def stylesheet() -> str:
    return Path(__file__).with_name("templates").joinpath("report.css").read_text(encoding="utf-8")


def _cell(text: Any) -> str:
    """Text that cannot break out of a Markdown table cell and starts no markup, link or image."""
    return re.sub(r"([\\|<>\[\]`*])", r"\\\1", " ".join(str(text).split()))


def render_html(report: Mapping[str, Any]) -> str:
    """One self-contained page: no script, no outside file; light, dark, phone and paper."""
    template = template_environment(True).get_template("report.html.j2")
    return template.render(css=stylesheet(), **_view(report), **_drawings(report))


def render_markdown(report: Mapping[str, Any]) -> str:
    """The same in Markdown: verdict, reasons, ledger, checks, command."""
    return template_environment(False).get_template("report.md.j2").render(**_view(report))


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    rows = ledger.rows(report)
    order = {"fail": 0, "undecided": 1, "pass": 2}
    environment, data = report["environment"], report["data"]
    trained = [s for s in report["subjects"] if s.get("training")]
    return {
        "report": report,
        "title": VERDICTS[report["verdict"]][0],
        "sign_text": VERDICTS[report["verdict"]][1],
        "meaning": VERDICTS[report["verdict"]][2],
        "headline": headline(report),
        "rows": rows,
        "chosen": next((row for row in rows if row.chosen), None),
        "chosen_subject": next((s for s, row in zip(report["subjects"], rows, strict=True) if row.chosen), None),
        "tiles": ledger.tiles(report),
        "chain": ledger.chain(report),
        "missing": ledger.not_measured(report),
        "checks": [
            {**check, "beside": told_beside(report, check)}
            for check in sorted(report["gates"], key=lambda c: order.get(c["outcome"], 1))
        ],
        "distillation": report.get("distillation"),
        "ladder": ladder_view(report),
        "trained": trained,
        "words": words_of(report),
        "pictures": report.get("pictures") or [],
        "facts": facts_of(environment),
        "packages": sorted((environment.get("packages") or {}).items()),
        "data": data,
        "sizes": data.get("sizes") or {},
        "stages": report.get("stages") or {},
        "slowest": max((s.get("seconds") or 0 for s in (report.get("stages") or {}).values()), default=0) or 1,
        "command": report.get("command") or "",
        "created": str(report.get("created") or "").replace("T", " ")[:16],
        "absent": ABSENT,
        "badge": "ships" if report["verdict"] == "released" else "judged",
        "devices": [device_view(record) for record in report.get("devices") or ()],
    }


def device_view(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a record that a device made of the bundle of this run."""
    environment = record["environment"]
    return {
        "name": ", ".join(str(part) for part in (*(environment.get("devices") or ()), environment.get("cpu")) if part),
        "verdict": record["verdict"],
        "title": VERDICTS[record["verdict"]][0],
        "badge": "ships" if record["verdict"] == "released" else "judged",
        "headline": headline(record),
        "checks": record["gates"],
        "rows": ledger.rows(record),
        "missing": ledger.not_measured(record),
        "created": str(record.get("created") or "").replace("T", " ")[:16],
    }


def facts_of(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The short facts of the environment, named for people; longer tables are left to report.json."""
    facts = []
    for key, value in environment.items():
        if key == "source" and isinstance(value, Mapping) and value.get("commit"):
            text = str(value["commit"])[:12] + (" with local changes" if value.get("dirty") else "")
        elif key.endswith("_bytes"):
            text = show(value, "bytes")
        elif isinstance(value, list):
            text = ", ".join(str(item) for item in value)
        else:
            text = str(value) if isinstance(value, (str, int, float, bool)) else ""
        if text:
            facts.append((key.removesuffix("_bytes").replace("_", " "), text))
    return facts


def _drawings(report: Mapping[str, Any]) -> dict[str, Any]:
    words = words_of(report)
    points = [
        charts.Point(
            label=subject_row.name,
            x=subject_row.p50_ms,
            y=subject_row.accuracy,
            kind=subject_row.role,
            chosen=subject_row.chosen,
        )
        for subject_row in ledger.rows(report)
        if subject_row.p50_ms and subject_row.accuracy is not None
    ]
    accuracy, losses = [], []
    for subject in report["subjects"]:
        curve = (subject.get("training") or {}).get("curve") or []
        epochs = [float(step["epoch"]) + 1 for step in curve]
        for key, lines in (("val_accuracy", accuracy), ("train_loss", losses)):
            kept = [(x, float(step[key])) for x, step in zip(epochs, curve, strict=True) if step.get(key) is not None]
            lines.append(
                charts.Line(
                    label=ledger.title_of(subject).lower(),
                    xs=[x for x, _ in kept],
                    ys=[y for _, y in kept],
                    kind=str(subject.get("role")),
                )
            )
    sizes = {"wide": (1000, 420), "narrow": (326, 380)}
    halves = {"wide": (486, 280), "narrow": (326, 240)}
    return {
        "pareto": {
            name: charts.pareto(points, width=w, height=h, everyone=name == "wide", axis=words.axis, unit=words.show)
            for name, (w, h) in sizes.items()
        },
        "accuracy_curves": {
            name: charts.curves(
                accuracy,
                width=w,
                height=h,
                title=f"validation {words.axis.removeprefix('top-1 ')}",
                percent=True,
                factor=words.factor,
            )
            for name, (w, h) in halves.items()
        },
        "loss_curves": {
            name: charts.curves(losses, width=w, height=h, title="training loss") for name, (w, h) in halves.items()
        },
    }


def _interval(check: Mapping[str, Any]) -> str:
    return charts.interval(
        check["value"],
        check["bound_lower"],
        check["bound_upper"],
        check["threshold"],
        direction=check["direction"],
        unit=check["unit"],
        outcome=check["outcome"],
    )


def print_ledger(report: Mapping[str, Any], console: Console, *, folder: Path, following: str = "") -> None:
    """The ledger, the checks, the verdict, where the page lies in `folder`, and the next command, in the terminal.

    `following` is that command, where the verdict alone does not say it.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("subject", words_of(report).noun, "vs teacher", "size", "p50", "speed-up", "memory", "MACs"):
        table.add_column(name, justify="left" if name == "subject" else "right", no_wrap=True)
    for row in ledger.rows(report):
        style = "bold green" if row.chosen else ("dim" if row.role == "control" else "")
        texts = (row.accuracy_text, row.change_text, row.size_text, row.p50_text, row.speedup_text)
        name = Text(f"{row.name} {chr(0x2605)}" if row.chosen else row.name)
        table.add_row(name, *texts, row.memory_text, row.macs_text, style=style)
    console.print(table)
    console.print()
    styles = {"pass": ("green", "\u2713"), "fail": ("red", "\u2715"), "undecided": ("yellow", "?")}
    for item in report["gates"]:
        waived = f" ({item['waived']})" if item.get("waived") else ""
        style, sign = ("yellow", "!") if waived else styles[item["outcome"]]
        line = Text.assemble((f"{sign} ", style), (item["rule"], "bold"), f": {item['reason']}{waived}")
        console.print(line)
    colour = {"released": "green", "refused": "red", "undecided": "yellow"}[report["verdict"]]
    if (report.get("distillation") or {}).get("sentence"):
        console.print(Text(str(report["distillation"]["sentence"])))
    for line in terminal_lines(report):
        console.print(Text(line))
    console.print()
    console.print(Text.assemble((report["verdict"].upper(), f"bold {colour}"), f"  {headline(report)}"))
    chosen = (report.get("selection") or {}).get("chosen")
    path = next((s.get("path") for s in report["subjects"] if s["name"] == chosen), None) or "the artifact"
    console.print(Text(f"report: {folder / 'report.html'}"), soft_wrap=True)
    following = following or NEXT[report["verdict"]].format(
        path=folder / path, command=report.get("command") or "edgestill run"
    )
    console.print(Text(f"next: {following}"), soft_wrap=True)
