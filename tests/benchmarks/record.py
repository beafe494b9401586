"""A small record of a run, worth keeping under artifacts/reference/.

    python tests/benchmarks/record.py artifacts/cifar10 > artifacts/reference/cifar10-resnet8.json
    python tests/benchmarks/record.py artifacts/cifar10-methods/sweep > artifacts/reference/cifar10-methods.json

The report without its raw block medians, training curves and recipe defaults, or the table of a sweep without its
folders; with the command, hardware and versions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.reports.report import load

SUBJECT = (
    "name",
    "precision",
    "runtime",
    "sha256",
    "size_bytes",
    "params",
    "macs",
    "agreement",
    "peak_memory_bytes",
    "parity",
)
PAIR = ("subject", "against", "n", "both", "only_subject", "only_against", "neither", "agree")
RATIO = ("subject", "against", "batch", "threads", "ratio", "ratio_lower", "ratio_upper", "confidence")
TRAINING = ("epochs", "s_per_epoch", "total_s", "teacher_share", "best_epoch")


def subject(row: dict[str, Any]) -> dict[str, Any]:
    device = [entry for entry in row["latency"] if entry["kind"] == "device"]
    kept = {key: row[key] for key in SUBJECT} | {"accuracy": row["accuracy"], "latency": device}
    if row.get("training"):
        kept["training"] = {key: row["training"][key] for key in TRAINING}
    return kept


def origin(found: dict[str, Any]) -> dict[str, Any]:
    """Of a report or a sweep: what made it, from what, and on which machine."""
    machine = found["environment"]["machine"]
    return {
        "command": found["command"],
        "created": found["created"],
        "hardware": {key: machine.get(key) for key in ("cpu", "cores", "memory_bytes", "flags")},
        "versions": found["environment"].get("packages"),
        "source": found["environment"].get("source"),
        "data": found["data"],
    }


def sweep_record(found: dict[str, Any]) -> dict[str, Any]:
    points = [
        {key: value for key, value in point.items() if key not in ("slug", "stages", "compression")}
        | {"seconds": {name: round(stage["seconds"], 1) for name, stage in point["stages"].items()}}
        for point in found["points"]
        if point["status"] == "done"
    ]
    return origin(found) | {"points": points}


def climbed(ladder: dict[str, Any]) -> dict[str, Any]:
    """The ladder with the ten most sensitive layers of each form."""
    ranked = {form: found | {"layers": found["layers"][:10]} for form, found in ladder["sensitivity"].items()}
    return ladder | {"sensitivity": ranked}


def record(report: dict[str, Any]) -> dict[str, Any]:
    pairs = [
        row for row in report["comparisons"] if row["kind"] == "accuracy" and row["against"] in ("teacher", "student")
    ]
    ratios = [row for row in report["comparisons"] if row["kind"] == "latency" and row["latency_kind"] == "device"]
    return {
        **origin(report),
        "distill": report["recipe"]["distill"],
        **(
            {"quantize": report["recipe"]["quantize"], "ladder": climbed(report["ladder"])}
            if "ladder" in report
            else {}
        ),
        "verdict": report["verdict"],
        "selection": report["selection"],
        "gates": report["gates"],
        "distillation": report["distillation"],
        "subjects": [subject(row) for row in report["subjects"]],
        "accuracy_pairs": [{key: row[key] for key in PAIR} for row in pairs],
        "latency_ratios": [{key: row[key] for key in RATIO} for row in ratios],
        "stages": report["stages"],
    }


if __name__ == "__main__":
    sweep = Path(sys.argv[1]) / "sweep.json"
    made = sweep_record(json.loads(sweep.read_text())) if sweep.exists() else record(load(sys.argv[1]))
    print(json.dumps(made, indent=1, ensure_ascii=False))
