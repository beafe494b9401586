"""`edgestill run digits --smoke` as a user runs it, end to end, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runner import cli
from steady_speed import steady
from two_stages import flip_bit

import pipeline
from pipeline.cli.run import VERDICT_CODES
from pipeline.manifest import sha256_file
from pipeline.reports.report import schema

ROOT = Path(__file__).parent.parent
COMMAND = ("run", "digits", "--smoke")
TAUGHT = ["data", "teacher", "teacher-check", "table", "distill", "control"]
STAGES = [*TAUGHT, "export", "quantize", "evaluate", "profile", "gate"]
LENIENT = ("gate.0.max=100pt", "gate.1.min=0.001", "gate.2.max=1e9")
TOP = {"schema_version", "recipe", "environment", "data", "subjects", "comparisons", "gates", "verdict"}
SUBJECT = {
    *("name", "stage", "format", "precision", "runtime", "path", "sha256", "size_bytes", "params", "macs", "flops"),
    *("accuracy", "latency", "throughput_per_s", "peak_memory_bytes", "energy_j"),
}
LATENCY = {"kind", "batch", "threads", "n", "p50_ms", "p90_ms", "p99_ms", "p90_bound_ms", "mean_ms"}
ENOUGH = {"p90_ms": 64, "p99_ms": 662}


class Run:
    """One real run in a process of its own, made once for all tests of this file."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.process = subprocess.run(
            [sys.executable, "-m", "pipeline", *COMMAND, "--out", str(out)],
            capture_output=True,
            text=True,
            check=False,
            cwd=out.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=280,
        )
        self.folder = out / "digits-smoke"

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    done: list[Run] = []

    def measured(attempt: int) -> dict[str, Any]:
        done.append(Run(tmp_path_factory.mktemp("smoke") / "out"))
        assert (done[-1].folder / "report.json").exists(), done[-1].process.stderr
        return done[-1].report

    return done[steady(measured)]


def test_the_exit_code_is_the_verdict(run: Run) -> None:
    verdict = run.report["verdict"]
    assert verdict in VERDICT_CODES and run.process.returncode == VERDICT_CODES[verdict], run.process.stderr
    assert f"\n{verdict.upper()}  " in run.process.stdout
    built = [line.partition(": ")[0] for line in run.process.stderr.splitlines() if ": building (never built)" in line]
    assert built == STAGES and "Warning" not in run.process.stderr
    assert (run.folder / "release").exists() == (verdict == "released")
    assert {"report.json", "report.md", "report.html"} <= {path.name for path in run.folder.iterdir()}


def test_the_report_keeps_its_schema_and_the_fixed_fields(run: Run) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    report = run.report
    jsonschema.validate(report, schema())
    assert report.keys() >= TOP
    names = {row["name"] for row in report["subjects"]}
    assert names >= {"teacher", "control", "student", "teacher@onnxruntime", "onnx-int8-cpu@onnxruntime"}
    for row in report["subjects"]:
        assert row.keys() >= SUBJECT and row["accuracy"].keys() >= {"metric", "value", "n", "ci95"}
        assert row["accuracy"]["n"] == report["data"]["sizes"]["test"] == 719
        empty = {key for key in ("throughput_per_s", "peak_memory_bytes", "energy_j") if row[key] is None}
        assert row["missing"].keys() >= empty, "what was not measured is null with a reason"
        assert sha256_file(run.folder / row["path"]) == row["sha256"]
        for place in row["stored"].values():
            assert sha256_file(run.folder / place["path"]) == place["sha256"]
        if row["name"] == "control":
            continue
        assert [entry["kind"] for entry in row["latency"]] == ["device", "end_to_end", "first"]
        for entry in row["latency"]:
            assert entry.keys() >= LATENCY and entry["p50_ms"] > 0
            assert all((entry[key] is None) == (entry["n"] < least) for key, least in ENOUGH.items())
        if row["format"] == "torch":
            assert row["training"].keys() >= {"epochs", "s_per_epoch", "total_s", "teacher_share"}
    by_name = {row["name"]: row for row in report["subjects"]}
    assert by_name["student"]["macs"] * 4 <= by_name["teacher"]["macs"]
    assert (
        by_name["student"]["training"]["teacher_share"] > 0 and by_name["teacher"]["training"]["teacher_share"] is None
    )
    assert len(report["gates"]) == 3 and report["selection"]["chosen"] in names
    assert report["distillation"]["sentence"].startswith("distillation ")
    assert str(run.out) not in json.dumps(report), "a report says nothing of where it was made"


def test_a_second_run_is_fresh_and_the_api_says_the_same(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("*-*/*")}
    said: list[str] = []
    report = pipeline.run("digits", smoke=True, out=run.out, say=said.append)
    assert said == [f"{stage}: fresh" for stage in STAGES]
    assert report == run.report
    assert {path: path.stat().st_mtime_ns for path in run.folder.glob("*-*/*")} == before
    assert {row.state for row in pipeline.plan("digits", smoke=True, out=run.out)} == {"fresh"}


def test_a_corrupted_artifact_is_built_again_and_nothing_else(run: Run) -> None:
    (folder,) = run.folder.glob("quantize-*")
    whole = sha256_file(folder / "onnx-int8-cpu.onnx")
    flip_bit(folder / "onnx-int8-cpu.onnx")
    said: list[str] = []
    pipeline.run("digits", smoke=True, out=run.out, say=said.append)
    assert "quantize: building (onnx-int8-cpu.onnx is corrupted (sha256 differs))" in said
    assert [line for line in said if line.endswith(": fresh")] == [f"{s}: fresh" for s in STAGES if s != "quantize"]
    assert sha256_file(folder / "onnx-int8-cpu.onnx") == whole


def test_a_release_exists_while_the_verdict_is_released(run: Run) -> None:
    settings = [word for text in LENIENT for word in ("--set", text)]
    command = [*COMMAND, "--out", run.out]
    released = cli(*command, *settings)
    assert released.code == 0 and released.err.count(": building (") == 1, released.err
    report = run.report
    assert report["verdict"] == "released"
    chosen = next(row for row in report["subjects"] if row["name"] == report["selection"]["chosen"])
    (artifact,) = (run.folder / "release").iterdir()
    assert sha256_file(artifact) == chosen["sha256"]
    refused = cli(*command, "--set", "gate.2.max=10", "--json")
    assert refused.code == 3 and refused.json["verdict"] == "refused"
    assert not (run.folder / "release").exists()
    assert artifact.name not in {path.name for path in run.folder.iterdir()}
