"""The ratchet against the last release, and what CI reads: exit codes, verdict.json, JUnit, the step summary."""

import copy
import hashlib
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import cli
from sample_report import CHOSEN, sample_report

from pipeline.errors import UserError
from pipeline.gates.judge import judge
from pipeline.gates.ratchet import LAST, added, joined, weaker
from pipeline.gates.rules import rule_of
from pipeline.reports import verdict_files
from pipeline.tasks.classification import Classification

BROKEN = {"metric": "size_bytes", "max": 1_000}
WAIVER = {"metric": "size_bytes", "owner": "Ada", "reason": "new flash in July", "expires": "2026-07-31"}


def test_no_rule_may_become_weaker():
    last = [rule_of({"metric": "size_bytes", "max": 100}), rule_of({"metric": "accuracy", "min": 0.9})]
    assert weaker(last, last) == []
    assert weaker([last[1], rule_of({"metric": "size_bytes", "max": 90})], last) == []
    assert weaker([rule_of({"metric": "size_bytes", "max": 200})], last) == [
        "size_bytes <= 100: the new limit is weaker (200)",
        "accuracy >= 0.9: the last release had this rule, the new one has not",
    ]
    assert [rule.metric for rule in added(last, "classification") if rule.against == LAST] == [
        "accuracy_drop",
        "flip_rate",
    ]
    assert added(last, "super-resolution") == last


def release(folder: Path, answers: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """A run folder whose chosen artifact gave `answers` on the test split; returns its report."""
    folder.mkdir()
    correct = answers == labels
    outcome = {"prediction": answers, "correct": correct, "top5": correct, "confidence": np.full(len(labels), 0.9)}
    outcome["label"] = labels
    buffer = io.BytesIO()
    np.savez(buffer, **{f"{split}_{key}": value for split in ("validation", "test") for key, value in outcome.items()})
    (folder / "outcomes.npz").write_bytes(buffer.getvalue())
    report = copy.deepcopy(sample_report())
    subject = next(row for row in report["subjects"] if row["name"] == CHOSEN)
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    subject["stored"] = {"outcomes": {"path": "outcomes.npz", "sha256": sha256}}
    subject["accuracy"] = Classification.summary(outcome) | {"validation": 0.9}
    report["comparisons"] = [row for row in report["comparisons"] if row["kind"] == "latency"]
    report["recipe"]["gate"] = [{"metric": "size_bytes", "max": 200_000}]
    verdict = judge(report)
    (folder / "report.json").write_text(json.dumps(report | verdict.recorded()))
    return report


def test_the_ratchet_pairs_the_recorded_answers_of_both_releases(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(5_000) % 10
    old = np.where(rng.random(5_000) < 0.95, labels, 0)
    release(tmp_path / "old", old, labels)
    release(tmp_path / "same", old, labels)
    worse = old.copy()
    worse[rng.random(5_000) < 0.1] = -1
    release(tmp_path / "worse", worse, labels)
    found = cli("gate", tmp_path / "same", "--against", tmp_path / "old", "--json")
    assert found.code == 0, found.err
    gates = json.loads(found.out)["gates"]
    assert [(gate["metric"], gate["against"], gate["value"]) for gate in gates[1:]] == [
        ("accuracy_drop", LAST, 0.0),
        ("flip_rate", LAST, 0.0),
    ]
    found = cli("gate", tmp_path / "worse", "--against", tmp_path / "old", "--json")
    assert found.code == 3
    assert [gate["outcome"] for gate in json.loads(found.out)["gates"]] == ["pass", "fail", "fail"]


def test_a_weakened_rule_refuses_and_is_named(tmp_path):
    labels = np.arange(5_000) % 10
    for name in ("old", "new"):
        release(tmp_path / name, labels, labels)
    path = tmp_path / "new" / "report.json"
    report = json.loads(path.read_text())
    report["recipe"]["gate"][0]["max"] = 300_000
    path.write_text(json.dumps(report))
    found = cli("gate", tmp_path / "new", "--against", tmp_path / "old", "--json")
    assert found.code == 3
    assert json.loads(found.out)["notes"] == ["size_bytes <= 200,000: the new limit is weaker (300,000)"]


def test_releases_on_other_data_are_not_paired_and_one_line_says_so(tmp_path):
    labels = np.arange(500) % 10
    last = release(tmp_path / "old", labels, labels)
    new = release(tmp_path / "new", labels, labels)
    last["data"]["fingerprint"] = "other"
    with pytest.raises(UserError, match=r"old: judged on other data \(other, not 5f2c5f2c5f2c\); answers cannot be"):
        joined(new, tmp_path / "new", last, tmp_path / "old")
    (tmp_path / "old" / "outcomes.npz").write_bytes(b"x")
    last["data"] = new["data"]
    with pytest.raises(UserError, match=r"outcomes.npz: is not the file that its report names; take the run from"):
        joined(new, tmp_path / "new", last, tmp_path / "old")


def test_what_ci_reads_names_the_bytes(tmp_path, monkeypatch):
    report = sample_report()
    report["recipe"]["gate"] = [BROKEN, {"metric": "accuracy_drop", "against": "teacher", "max": "4.7pt"}]
    report["recipe"]["gate"] += [{"metric": "params", "max": 5}]
    report["recipe"]["waiver"] = [WAIVER | {"metric": "params", "expires": "2999-01-01"}]
    (tmp_path / "report.json").write_text(json.dumps(report | judge(report).recorded()))
    page = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    found = cli("gate", tmp_path, "--out", tmp_path / "ci")
    assert found.code == 3
    verdict = json.loads((tmp_path / "ci" / "verdict.json").read_text())
    assert verdict["verdict"] == "refused"
    assert [row["rule"] for row in verdict["waived"]] == ["params <= 5"]
    told = verdict["evidence"]
    assert {row["name"]: row["sha256"] for row in told["judged"]} == {
        row["name"]: row["sha256"] for row in report["subjects"] if row["name"] in (CHOSEN, "teacher")
    }
    assert told["data"] == {"name": "cifar10", "sha256": report["data"]["fingerprint"]}
    assert told["calibration"] == "ab" * 32
    assert told["code"] == {"commit": "0123abcd" * 5, "dirty": True}
    assert told["runtimes"] == {"openvino": "2025.3.0", "torch": "2.9.0"}
    assert told["device"]["cpu"] == "AMD EPYC 7B13"
    suite = ET.fromstring((tmp_path / "ci" / "junit.xml").read_text())
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    assert next(case.get("name") for case in suite) == "size_bytes <= 1,000"
    assert page.read_text().startswith("## \u274c Refused: cifar10\n")
    assert page.read_text() == (tmp_path / "ci" / "summary.md").read_text()


def test_a_summary_and_a_junit_file_survive_hostile_names():
    report = sample_report()
    report["recipe"]["name"] = "<b>`x`|\x00"
    verdict = judge(report)
    assert "<b>" not in verdict_files.summary(report, verdict)
    assert ET.fromstring(verdict_files.junit(report, verdict)).get("name") == "edgestill gate <b>`x`|?"
