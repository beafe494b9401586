"""A verdict for machines: verdict.json, JUnit XML, and a summary in markdown for the page of a CI run.

verdict.json names by sha256 what the verdict holds for: every judged file, the data, the calibration set, the recipe;
and the code revision, runtimes, driver and device that measured. Reads a report; decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from pipeline.atomic import write_json, write_text
from pipeline.manifest import sha256_json

if TYPE_CHECKING:
    from pipeline.gates.judge import Verdict

SCHEMA = 1
SIGNS = {"pass": "\u2705", "fail": "\u274c", "undecided": "\u2754", "waived": "\u26a0\ufe0f"}

# Runtimes whose package has another name; the first that is installed.
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu", "onnxruntime"),
    "onnxruntime-tensorrt": ("onnxruntime-gpu", "onnxruntime"),
    "torch-compile": ("torch",),
}


def evidence(report: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """What the verdict rests on. What the report does not tell is null."""
    environment, data = report.get("environment") or {}, report.get("data") or {}
    names = {name for check in verdict.checks for name in (check.subject, check.against) if name}
    judged = [row for row in report["subjects"] if row["name"] in names]
    machine = environment.get("machine") or {}
    source = environment.get("source") or {}
    packages = environment.get("packages") or {}
    return {
        "judged": [{key: row.get(key) for key in ("name", "path", "sha256", "precision", "runtime")} for row in judged],
        "data": {"name": data.get("name"), "sha256": data.get("fingerprint")},
        "calibration": (data.get("calibration") or {}).get("sha256"),
        "recipe": {"name": (report.get("recipe") or {}).get("name"), "sha256": sha256_json(report.get("recipe") or {})},
        "code": {"commit": source.get("commit"), "dirty": source.get("dirty")},
        "runtimes": {name: _version(name, packages) for name in sorted({str(row.get("runtime")) for row in judged})},
        "driver": environment.get("driver") or machine.get("driver"),
        "device": {
            "cpu": environment.get("cpu"),
            "cores": environment.get("cores"),
            "gpus": environment.get("devices") or [],
            "system": environment.get("system"),
            "python": environment.get("python"),
        },
        "measured": report.get("created"),
    }


def _version(runtime: str, packages: Mapping[str, Any]) -> Any:
    return next((packages[name] for name in PACKAGES.get(runtime, (runtime,)) if name in packages), None)


def verdict_json(report: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The whole of verdict.json; equal inputs give equal bytes."""
    return {
        "schema_version": SCHEMA,
        "verdict": verdict.verdict,
        "sentence": verdict.sentence,
        "assurance": verdict.assurance,
        "notes": list(verdict.notes),
        "waived": [{"rule": check.rule, "waived": check.waived} for check in verdict.checks if check.waived],
        "gates": verdict.gates(),
        "evidence": evidence(report, verdict),
    }


def junit(report: Mapping[str, Any], verdict: Verdict) -> str:
    """A test case a check: a broken limit is a failure, an undecided one an error, a waived one is skipped."""
    recipe = str((report.get("recipe") or {}).get("name") or "report")
    kinds = {"fail": "failure", "undecided": "error"}
    bad = [check for check in verdict.checks if check.waived is None]
    totals = {kind: sum(check.outcome == outcome for check in bad) for outcome, kind in kinds.items()}
    skipped = sum(check.waived is not None for check in verdict.checks)
    counted = f'tests="{len(verdict.checks)}" failures="{totals["failure"]}" errors="{totals["error"]}"'
    counted += f' skipped="{skipped}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuite name={_quoted(f'edgestill gate {recipe}')} {counted}>",
    ]
    for check in verdict.checks:
        name, suite = _quoted(check.rule), _quoted(f"{recipe}.{check.subject or 'none'}")
        lines.append(f" <testcase name={name} classname={suite}>")
        if check.waived is not None:
            lines.append(f"  <skipped message={_quoted(check.waived)}/>")
        elif check.outcome in kinds:
            lines.append(f"  <{kinds[check.outcome]} message={_quoted(check.reason)} type={_quoted(check.outcome)}/>")
        lines += [f"  <system-out>{escape(_plain(check.reason))}</system-out>", " </testcase>"]
    return "\n".join([*lines, "</testsuite>", ""])


def _quoted(text: str) -> str:
    return quoteattr(_plain(text))


def _plain(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def summary(report: Mapping[str, Any], verdict: Verdict) -> str:
    """Markdown: the verdict, a row a check, waivers and notes, and the bytes it holds for."""
    sign = {"released": SIGNS["pass"], "refused": SIGNS["fail"]}.get(verdict.verdict, SIGNS["undecided"])
    recipe = _cell(str((report.get("recipe") or {}).get("name") or "report"))
    lines = [f"## {sign} {verdict.verdict.capitalize()}: {recipe}", "", _cell(verdict.sentence), ""]
    if verdict.checks:
        lines += ["| | limit | found |", "|---|---|---|"]
    for check in verdict.checks:
        mark = SIGNS["waived" if check.waived else check.outcome]
        found = check.reason + (f" ({check.waived})" if check.waived else "")
        lines.append(f"| {mark} | {_cell(check.rule)} | {_cell(found)} |")
    lines += ["", f"{_cell(verdict.assurance['sentence'])}.", ""]
    lines += [f"- {_cell(note)}" for note in verdict.notes]
    lines += [
        f"- {_cell(row['name'])}: `{_code(row['path'] or 'no file')}` sha256 `{_code(row['sha256'] or 'unknown')}`"
        for row in evidence(report, verdict)["judged"]
    ]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text that stays in its cell and starts no markup: names come from reports that others may have made."""
    kept = " ".join(text.split())
    return re.sub(r"([\\|<>\[\]`*_#])", r"\\\1", kept)


def _code(text: Any) -> str:
    return " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")


def write(folder: Path, report: Mapping[str, Any], verdict: Verdict) -> dict[str, Path]:
    """verdict.json, junit.xml and summary.md in `folder`, which is made."""
    paths = {name: folder / name for name in ("verdict.json", "junit.xml", "summary.md")}
    write_json(paths["verdict.json"], verdict_json(report, verdict))
    write_text(paths["junit.xml"], junit(report, verdict))
    write_text(paths["summary.md"], summary(report, verdict))
    return paths
