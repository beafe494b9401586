"""run, plan, gate, report and compare: what they print about runs, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import cli
from sample_report import sample_report

import pipeline
from pipeline.gates.judge import judge

LENIENT = [{"metric": "accuracy", "min": 0.5}]
STRICT = [{"metric": "accuracy", "min": 0.99}]
CLOSE = [{"metric": "accuracy_drop", "against": "teacher", "max": "4.8pt"}]


def recorded(folder: Path, rules: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A folder with the report of a run, judged by `rules`."""
    report = sample_report() | changes
    if rules is not None:
        report["recipe"] |= {"gate": rules}
    verdict = judge(report)
    report["gates"], report["verdict"] = verdict.gates(), verdict.verdict
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("rules", "code", "verdict"), [(LENIENT, 0, "released"), (STRICT, 3, "refused"), (CLOSE, 4, "undecided")]
)
def test_gate_exits_with_the_verdict(tmp_path: Path, rules: list[dict[str, Any]], code: int, verdict: str) -> None:
    run = recorded(tmp_path / "run", rules)
    result = cli("gate", run)
    assert result.code == code and f"\n{verdict.upper()}  " in result.out
    assert result.out.splitlines()[-1] == f"next: edgestill report {run}"
    found = cli("gate", run / "report.json", "--json")
    assert found.code == code and found.json["verdict"] == verdict and len(found.json["gates"]) == 1


def test_gate_with_other_rules(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", STRICT)
    rules = tmp_path / "rules.toml"
    rules.write_text('[[gate]]\nmetric = "size_bytes"\nmax = 200_000\n')
    result = cli("gate", run, "--rules", rules, "--json")
    assert result.code == 0 and [check["metric"] for check in result.json["gates"]] == ["size_bytes"]
    assert cli("gate", run).code == 3, "the report's own rules are as they were"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "rules.toml: no [[gate]] table; nothing would be judged"),
        ("[gate]\nmetric = 'params'", "rules.toml: no [[gate]] table; nothing would be judged"),
        ("[[gate]]\nmetric = 'parms'\nmax = 1", "gate.0: unknown metric 'parms'; did you mean 'params'?"),
        ("[[gate]\n", "rules.toml: line 1, column "),
    ],
)
def test_unreadable_rules_are_a_bad_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(Path("run"), LENIENT)
    Path("rules.toml").write_text(text)
    result = cli("gate", "run", "--rules", "rules.toml")
    assert result.code == 2 and result.err.startswith(f"error: {line}") and result.err.count("\n") == 1


def test_a_damaged_report_is_one_line(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", LENIENT)
    text = (run / "report.json").read_text()
    (run / "report.json").write_text(text[: len(text) // 2])
    for command in ("gate", "report"):
        result = cli(command, run)
        assert result.code == 1 and "damaged or cut short" in result.err and result.err.count("\n") == 1


def test_report_renders_both_pages(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", LENIENT)
    result = cli("report", run)
    assert result.code == 0 and f"wrote {run / 'report.md'} and {run / 'report.html'}" in result.out
    assert "<!doctype html>" in (run / "report.html").read_text(encoding="utf-8").lower()
    assert cli("report", run / "report.json", "--json").json == {
        "markdown": str(run / "report.md"),
        "html": str(run / "report.html"),
    }


def test_compare_puts_runs_into_one_table_and_one_picture(tmp_path: Path) -> None:
    runs = [recorded(tmp_path / name, LENIENT) for name in ("first", "second")]
    found = cli("compare", *runs, "--json").json
    assert [(row["run"], row["subject"]) for row in found["rows"][:3]] == [
        ("first", "teacher@openvino"),
        ("first", "student"),
        ("first", "onnx-int8@openvino"),
    ]
    assert found["not_compared"] == {} and len(found["rows"]) == 6 and found["pareto"]
    page = tmp_path / "page.html"
    result = cli("compare", *runs, "--html", page)
    assert result.code == 0 and f"wrote {page}" in result.out
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2 and "first onnx-int8@openvino" in text and "http" not in text.replace("w3.org", "")
    assert len(cli("compare", *runs, "--all", "--json").json["rows"]) == 22


def test_compare_refuses_what_was_not_measured_alike(tmp_path: Path) -> None:
    first = recorded(tmp_path / "first", LENIENT)
    other = sample_report()
    other["environment"]["cpu"] = "another processor"
    second = recorded(
        tmp_path / "second", LENIENT, environment=other["environment"], data=other["data"] | {"fingerprint": "0" * 64}
    )
    found = cli("compare", first, second, "--json").json
    assert set(found["not_compared"]) == {"accuracy", "latency"} and found["pareto"] == []
    assert all(row["accuracy"] is None and row["p50_ms"] is None and row["size_bytes"] for row in found["rows"])
    text = cli("compare", first, second).out
    assert "note: latency is not compared: processor differs: first AMD EPYC 7B13, second another processor" in text


def test_compare_needs_two_different_runs(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", LENIENT)
    assert cli("compare", run).err == f"error: {run}: one run; name at least two to compare\n"
    assert cli("compare", run, run).err == f"error: {run}: named twice; name each run once\n"


def test_plan_says_what_would_run_and_why(tmp_path: Path) -> None:
    rows = cli("plan", "digits", "--out", tmp_path, "--json").json
    assert [row["stage"] for row in rows][:2] == ["data", "teacher"] and rows[-1]["stage"] == "gate"
    assert {row["state"] for row in rows} == {"missing"} and rows[0]["reasons"] == ["never built"]
    text = cli("plan", "digits", "--out", tmp_path, "--set", "distill.epochs=3").out
    assert f"{len(rows)} of {len(rows)} stages would run" in text
    assert text.splitlines()[-1] == f"next: edgestill run digits --set distill.epochs=3 --out {tmp_path}"
    assert list(tmp_path.iterdir()) == []


def test_run_checks_files_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("run", "digits", "--set", "teacher.weights=no.pt")
    assert result.code == 2 and result.err.startswith("error: teacher.weights: no such file 'no.pt' (looked in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rules", "code"), [(LENIENT, 0), (STRICT, 3), (CLOSE, 4)])
def test_run_ends_with_the_ledger_and_the_verdicts_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: list[dict[str, Any]], code: int
) -> None:
    # The chain itself has its own tests and takes minutes: here it has just ended with this report.
    report = json.loads((recorded(tmp_path / "run", rules) / "report.json").read_text())
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: report)
    result = cli("run", "digits")
    assert result.code == code and "onnx-int8@openvino" in result.out
    assert result.out.splitlines()[-2].endswith("report.html")
    assert result.out.splitlines()[-1].startswith("next: ") and "edgestill " in result.out.splitlines()[-1]
    assert cli("run", "digits", "--json").json["verdict"] == report["verdict"]
