"""The folder of a finished run without a training behind it: real stages in a real store, outcomes and timings drawn.

Every figure of its report comes from the functions that the chain uses, so `edgestill verify` finds it whole.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from sample_report import sample_report

from pipeline import manifest
from pipeline.atomic import write_json
from pipeline.gates.judge import judge
from pipeline.gates.rules import rule_of
from pipeline.gates.selection import select
from pipeline.reports.report import render_html, render_markdown
from pipeline.stage import Context, Stage
from pipeline.stages.evaluate import write_outcomes
from pipeline.stages.profile import KINDS, ratios
from pipeline.stages.subjects import Judged
from pipeline.store import Store
from pipeline.tasks.classification import Classification
from profiles.latency import LatencyResult

NAME = "cifar10"
BLOCKS, QUERIES = 36, 30
SUBJECTS = ("teacher@openvino", "teacher", "student", "onnx-fp32@openvino", "onnx-int8@openvino")


def sample_run(root: Path, *, n: int = 400, rules: list[dict[str, Any]] | None = None, timed: bool = True) -> Path:
    """The folder of the run, `root/cifar10`, whose gate set has `n` samples; rules default to two that it keeps."""
    rules = rules or [
        {"metric": "accuracy_drop", "against": "teacher", "max": "20pt"},
        {"metric": "speedup_p50", "against": "teacher", "min": 2.0},
        {"metric": "size_bytes", "max": 200_000},
    ]
    report = sample_report() | {"gates": [], "verdict": "undecided"}
    report["recipe"]["gate"] = rules
    report["subjects"] = [row for row in report["subjects"] if row["name"] in SUBJECTS]
    report["recipe"]["task"] = "classification"
    report["data"]["sizes"]["test"] = n

    def data(context: Context) -> None:
        write_json(context.folder / "data.json", report["data"])

    def export(context: Context) -> None:
        for row in report["subjects"]:
            (context.folder / file_of(row["name"])).write_bytes(row["name"].encode() * (row["size_bytes"] // 1000))

    parts = (
        ("data", data, ()),
        ("export", export, ("data",)),
        ("evaluate", functools.partial(evaluate, report, n), ("data", "export")),
        ("profile", functools.partial(profile, report), ("data", "export")),
        ("gate", functools.partial(gate, report, timed), ("data", "export", "evaluate", "profile")),
    )
    stages = [Stage(name=name, version=1, config={"n": n}, run=run, needs=needs) for name, run, needs in parts]
    folders = Store(root, NAME).run(stages, lambda line: None)
    for name in ("report.json", "report.md", "report.html"):
        (root / NAME / name).write_bytes((folders["gate"] / name).read_bytes())
    return root / NAME


def file_of(name: str) -> str:
    return f"{name.partition('@')[0]}.onnx"


def evaluate(report: dict[str, Any], n: int, context: Context) -> None:
    """Drawn answers: the better a subject in the sample report, the more samples it gets right, and the same ones."""
    for row in report["subjects"]:
        outcomes = {}
        for split, size in (("validation", max(20, n // 10)), ("test", n)):
            hard = np.random.default_rng(len(split)).random(size)
            noise = np.random.default_rng(sum(row["name"].partition("@")[0].encode())).normal(0, 0.01, size)
            correct = hard + noise < row["accuracy"]["value"]
            outcomes[split] = {
                row["name"]: {
                    "prediction": np.where(correct, 0, 1).astype(np.int32),
                    "correct": correct,
                    "top5": np.ones(size, bool),
                    "confidence": hard.astype(np.float32),
                }
            }
        write_outcomes(context.folder, row["name"], outcomes)


def profile(report: dict[str, Any], context: Context) -> None:
    for row in report["subjects"]:
        for kind in KINDS:
            rng = np.random.default_rng(sum(row["name"].encode()) + len(kind))
            p50_ns = 1e6 * (row["latency"][0]["p50_ms"] if row["latency"] else 1.0)
            drift = np.repeat(rng.normal(0, 0.02, BLOCKS), QUERIES)
            samples = (p50_ns * np.exp(drift + np.abs(rng.normal(0, 0.03, len(drift))))).astype(np.int64)
            np.save(context.folder / f"latency-{kind}-{row['name']}.npy", np.stack([samples, blocks_of(samples)]))


def blocks_of(samples: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(BLOCKS, dtype=np.int64), len(samples) // BLOCKS)


def gate(report: dict[str, Any], timed: bool, context: Context) -> None:
    outcomes, results = {}, {kind: {} for kind in KINDS}
    manifests = {name: manifest.read(folder) for name, folder in context.inputs.items()}

    def stored(stage: str, file: str) -> dict[str, str]:
        return {"path": f"{context.inputs[stage].name}/{file}", "sha256": manifests[stage]["files"][file]["sha256"]}

    for row in report["subjects"]:
        name, file = row["name"], file_of(row["name"])
        row["path"] = f"{context.inputs['export'].name}/{file}"
        entry = manifests["export"]["files"][file]
        row["sha256"], row["size_bytes"] = entry["sha256"], entry["size"]
        with np.load(context.inputs["evaluate"] / f"outcomes-{name}.npz") as archive:
            found = {key: archive[key] for key in archive.files}
        outcomes[name] = {
            split: {key.removeprefix(f"{split}_"): value for key, value in found.items() if key.startswith(split)}
            for split in ("validation", "test")
        }
        task = Classification
        row["accuracy"] = task.summary(outcomes[name]["test"]) | {
            "validation": task.summary(outcomes[name]["validation"])["value"]
        }
        row["stored"] = {"outcomes": stored("evaluate", f"outcomes-{name}.npz")}
        row["latency"] = []
        for kind in KINDS:
            samples, blocks = np.load(context.inputs["profile"] / f"latency-{kind}-{name}.npy")
            result = LatencyResult(
                subject=name,
                kind=kind,
                batch=1,
                threads=1,
                samples_ns=samples,
                block=blocks.astype(np.int32),
                block_ns=np.full(BLOCKS, 10**6),
                external_load=np.zeros(BLOCKS),
                contaminated=np.zeros(BLOCKS, bool),
                warmup_ns=samples[:4],
                settled=True,
            )
            results[kind][name] = result
            kept = ("kind", "batch", "threads", "n", "p50_ms", "p90_ms", "p99_ms", "p90_bound_ms", "mean_ms", "blocks")
            row["latency"].append({key: result.row()[key] for key in kept} | {"contaminated_blocks": 0})
            row["stored"][f"latency_{kind}"] = stored("profile", f"latency-{kind}-{name}.npy")
        row["throughput_per_s"] = 1e3 / row["latency"][0]["mean_ms"]
    report["comparisons"] = [pair(row["name"], against, outcomes) for row in report["subjects"] for against in
                             ("teacher", "student") if row["name"] != against]  # fmt: skip
    subjects = [
        Judged(**{key: row[key] for key in ("name", "role", "stage", "format", "precision", "runtime")}, path=Path())
        for row in report["subjects"]
    ]
    for kind in KINDS if timed else ():  # they cost the most
        report["comparisons"] += ratios(kind, subjects, results[kind])
    validation = [
        pair(row["subject"], row["against"], outcomes, "validation")
        for row in report["comparisons"]
        if row["kind"] == "accuracy"
    ]
    report["selection"] = select(report, [rule_of(rule) for rule in report["recipe"]["gate"]], validation)
    verdict = judge(report)
    report["gates"], report["verdict"] = verdict.gates(), verdict.verdict
    (context.folder / "report.json").write_text(json.dumps(report, indent=1))
    (context.folder / "report.md").write_text(render_markdown(report))
    (context.folder / "report.html").write_text(render_html(report))


def pair(subject: str, against: str, outcomes: Any, split: str = "test") -> dict[str, Any]:
    counts = Classification.pair(outcomes[subject][split], outcomes[against][split])
    return {"kind": "accuracy", "subject": subject, "against": against, "split": split, **counts}
