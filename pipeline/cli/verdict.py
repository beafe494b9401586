"""`edgestill gate` and `edgestill report`: from a recorded report, without measuring anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.arguments import json_option
from pipeline.cli.output import console, print_json, reads, say_next
from pipeline.cli.run import VERDICT_CODES
from pipeline.errors import RecipeError, UserError

if TYPE_CHECKING:
    from pipeline.gates.judge import Verdict

SIGNS = {"pass": ("green", "\u2713"), "fail": ("red", "\u2715"), "undecided": ("yellow", "?")}
COLOURS = {"released": "green", "refused": "red", "undecided": "yellow"}


@click.command()
@click.argument("report", metavar="REPORT")
@click.option("--rules", metavar="FILE", help="Rules to judge by: a .toml file with [[gate]] tables, or a recipe.")
@click.option(
    "--against",
    "last",
    metavar="LAST_RELEASE",
    type=click.Path(path_type=Path),
    help="The report or run folder of the last release: no rule may be weaker, its right answers should stay right.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write verdict.json, junit.xml and summary.md there.",
)
@click.option(
    "--summary",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append the summary to this file (default: $GITHUB_STEP_SUMMARY where it is set).",
)
@json_option
@click.pass_context
@reads("report")
def gate(
    ctx: click.Context,
    report: str,
    rules: str | None,
    last: Path | None,
    out: Path | None,
    summary: Path | None,
    as_json: bool,
) -> None:
    """Judge REPORT again, a report.json or the folder of a run, by its own rules or those of --rules.

    Exits with 0 for released, 3 for refused, 4 for undecided. Waived limits are listed.
    """
    from pipeline.gates.judge import judge
    from pipeline.reports import verdict_files
    from pipeline.reports.report import load

    found, given, waivers = load(report), None, None
    if rules is not None:
        given, waivers = read_rules(rules), read_waivers(rules)
    weak: list[str] = []
    if last is not None:
        found, given, weak = against_last(found, Path(report), last, given)
    verdict = judge(found, given, waivers=waivers)
    if weak:
        sentence = f"{verdict.sentence}; {len(weak)} rules of the last release are weaker or gone"
        verdict = replace(verdict, verdict="refused", sentence=sentence, notes=(*weak, *verdict.notes))
    bytes_judged = judged(found, verdict)
    if out is not None:
        verdict_files.write(out, found, verdict)
    append_summary(summary, verdict_files.summary(found, verdict))
    if as_json:
        told = {"verdict": verdict.verdict, "sentence": verdict.sentence, "gates": verdict.gates()}
        told |= {"assurance": verdict.assurance, "notes": list(verdict.notes)}
        print_json(told | {"judged": bytes_judged})
    else:
        _show(verdict)
        for row in bytes_judged:
            click.echo(f"judged: {row['path']}, sha256 {row['sha256']}")
        if "bundle" in found:
            say_next(f"edgestill report RUN --join {report}, on the host")
        else:
            say_next(f"edgestill report {report}")
    ctx.exit(VERDICT_CODES[verdict.verdict])


def against_last(
    found: dict[str, Any], run: Path, last: Path, given: list[dict[str, Any]] | None
) -> tuple[dict[str, Any], list[Any], list[str]]:
    """The report joined with the last release, the rules to judge it by, and those that were weakened.

    Where the two cannot be paired one line says why, and the checks against the last release stay undecided.
    """
    from pipeline.gates.ratchet import added, joined, rules_of, weaker
    from pipeline.gates.rules import rule_of
    from pipeline.reports.report import load

    before = load(last)
    try:
        rules = rules_of(found, str(run)) if given is None else [rule_of(table) for table in given]
    except ValueError as error:
        raise RecipeError(f"--rules: {error}") from None
    weak = weaker(rules, rules_of(before, str(last)))
    try:
        found = joined(found, run, before, last)
    except UserError as error:
        click.echo(f"note: {error}", err=True)
    return found, added(rules, str((found.get("recipe") or {}).get("task") or "classification")), weak


def append_summary(path: Path | None, text: str) -> None:
    """Append `text` to `path`, or to the file that GitHub Actions names; nothing where there is neither."""
    named = path or (Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None)
    if named is None:
        return
    try:
        with named.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{named}: the summary cannot be written ({error.strerror}); give --summary FILE") from None


def judged(report: Mapping[str, Any], verdict: Verdict) -> list[dict[str, Any]]:
    """Name, path and sha256 of every subject that a check was about: the bytes that the verdict holds for."""
    names = {check.subject for check in verdict.checks}
    return [{k: row.get(k) for k in ("name", "path", "sha256")} for row in report["subjects"] if row["name"] in names]


def _show(verdict: Verdict) -> None:
    from rich.text import Text

    shown = console()
    for check in verdict.checks:
        style, sign = SIGNS[check.outcome]
        waived = f" ({check.waived})" if check.waived else ""
        style, sign = ("yellow", "!") if waived else (style, sign)
        reason = f": {check.reason}{waived}"
        shown.print(Text.assemble((f"{sign} ", style), (check.rule, "bold"), reason), soft_wrap=True)
    colour = f"bold {COLOURS[verdict.verdict]}"
    for note in verdict.notes:
        shown.print(Text(f"note: {note}"), soft_wrap=True)
    shown.print(Text.assemble((verdict.verdict.upper(), colour), f"  {verdict.sentence}"), soft_wrap=True)
    if verdict.checks:
        shown.print(Text(verdict.assurance["sentence"]), soft_wrap=True)


def read_rules(path: str) -> list[dict[str, Any]]:
    """The [[gate]] tables of a TOML file. A file without any is refused: nothing would be judged."""
    from pipeline.recipe_file import read_toml

    if not Path(path).is_file():
        raise RecipeError(f"{path}: no such file; give a .toml file with [[gate]] tables")
    rules = read_toml(Path(path)).get("gate")
    if not isinstance(rules, list) or not rules or not all(isinstance(rule, dict) for rule in rules):
        raise RecipeError(f"{path}: no [[gate]] table; nothing would be judged")
    return rules


def read_waivers(path: str) -> list[dict[str, Any]]:
    """The [[waiver]] tables of the same file; none is fine."""
    from pipeline.recipe_file import read_toml

    waivers = read_toml(Path(path)).get("waiver", [])
    if not isinstance(waivers, list) or not all(isinstance(waiver, dict) for waiver in waivers):
        raise RecipeError(f"{path}: waiver is not a list of tables; write [[waiver]]")
    return waivers


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--join",
    "records",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RECORD",
    help="What 'edgestill profile BUNDLE' wrote on a device; kept with the run from then on. May be repeated.",
)
@json_option
@reads("run")
def report(run: str, records: tuple[Path, ...], as_json: bool) -> None:
    """Render report.md and report.html beside the report.json of RUN, a folder or the file itself.

    With --join, what a device measured of this run's bundle joins the page, judged by the rules of this run.
    """
    from pipeline.atomic import write_text
    from pipeline.bundle.join import join, joined
    from pipeline.reports.report import device_view, load, print_ledger, render_html, render_markdown

    found = load(run)
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    for record in records:
        join(folder, found, record)
    devices, left_out = joined(folder, found)
    for why in left_out:
        click.echo(f"note: left out: {why}", err=True)
    pages = {"markdown": folder / "report.md", "html": folder / "report.html"}
    write_text(pages["markdown"], render_markdown(found | {"devices": devices}))
    write_text(pages["html"], render_html(found | {"devices": devices}))
    views = [device_view(record) for record in devices]
    if as_json:
        told: dict[str, Any] = {name: str(path) for name, path in pages.items()}
        if views:
            told["devices"] = [{key: view[key] for key in ("name", "verdict", "headline")} for view in views]
        print_json(told)
        return
    click.echo(f"wrote {pages['markdown']} and {pages['html']}")
    for view in views:
        click.echo(f"on {view['name']}: {view['verdict'].upper()}  {view['headline']}")
    print_ledger(found, console(), folder=folder)
