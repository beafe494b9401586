"""One row a point of a sweep: accuracy and gain over seeds, compression, time, memory. sweep.json is made of these.

What was not measured is null, with its reason under `missing`, never 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.recipe import Recipe
from pipeline.reports.task_words import words_of
from pipeline.stages import distill, evaluate, gate

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
# The keys of sweep.json, with what they hold; a test compares them with what is written.
KEYS = {
    "schema_version": "of this document",
    "recipe": "name of the recipe",
    "command": "the command that made it",
    "created": "when it was written, UTC",
    "engine": "local or ray",
    "grid": "key of the recipe -> its values, as text",
    "environment": "machine and versions, as in report.json; of the last point that was measured",
    "data": "data set, its fingerprint and sizes, as in report.json",
    "points": "one entry a point, in the order of the grid",
    "saved_s": "seconds that sharing stages between the points saved",
}
POINT_KEYS = {
    "name": "named run and values of the grid",
    "slug": "its folder beside sweep.json, with report.json and report.html",
    "set": "key of the recipe -> value",
    "command": "runs this point alone, in the same store",
    "status": "done, failed or pending",
    "why": "of a failed point: the error",
    "verdict": "released, refused or undecided, of the first seed's artifact",
    "metric": "of all accuracies, such as top1",
    "task": "names and units of that metric, as in the report",
    "n": "test images",
    "seeds": "per seed: seed, accuracies of student and control, gain_pt",
    "accuracy": "student on the test split: mean, std (n - 1) and ci95 (Student's t) over seeds; in task.show",
    "control": "the same student without a teacher",
    "gain_pt": "student minus control of the same seed, in points, or in task.unit where that is another",
    "teacher_accuracy": "on the same images, a fraction",
    "artifact": "the exported form that the gate judged",
    "artifact_accuracy": "of that form, a fraction",
    "params": "of the student",
    "macs": "of the student, for one image",
    "size_bytes": "of the artifact",
    "compression": "teacher over student: params, macs; teacher's weights over the artifact: bytes",
    "s_per_epoch": "training of the student, mean over seeds",
    "total_s": "of all stages of this point, shared ones included",
    "added_s": "of the stages that no earlier point of this sweep has",
    "teacher_share": "share of the student's training time spent on the teacher, mean over seeds; a table is a stage",
    "peak_memory_bytes": "largest resident memory (RAM) of any stage",
    "peak_memory_stage": "which stage that was",
    "peak_cuda_bytes": "largest GPU memory that any stage's tensors took (torch's allocator)",
    "peak_cuda_stage": "which stage that was",
    "stages": "stage -> folder, seconds, peak_rss_bytes, peak_cuda_bytes, shared (an earlier point has it too)",
    "missing": "key -> why it is null",
}
ABSENT_POINT = dict.fromkeys(POINT_KEYS) | {"seeds": [], "stages": {}, "missing": {}}


def summary(values: Sequence[float]) -> dict[str, float | list[float] | None]:
    """Mean, standard deviation with n - 1, and the two-sided 95 % interval by Student's t; null below two values."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "std": None, "ci95": None}
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return {"mean": mean, "std": std, "ci95": list(gate.t_interval(list(values)))}


def figures(recipe: Recipe, report: Mapping[str, Any], folders: Mapping[str, Path], seen: set[Path]) -> dict[str, Any]:
    """What a finished point adds to its row; `seen` are folders of earlier points, and grows by this one's.

    Times and memory come from the point's own folders, not from its report: two points that train to the same bytes
    share what follows, the report included.
    """
    missing: dict[str, str] = {}
    stages = stages_of(folders, seen)
    seen.update(folders.values())
    subjects = {row["name"]: row for row in report["subjects"]}
    teacher, student = subjects["teacher"], subjects["student"]
    artifact = subjects.get((report.get("selection") or {}).get("chosen") or "")
    return {
        "verdict": report["verdict"],
        "metric": student["accuracy"]["metric"],
        "task": asdict(words_of(report)),
        "n": student["accuracy"]["n"],
        **over_seeds(seeds_of(recipe, report, folders), missing),
        "teacher_accuracy": teacher["accuracy"]["value"],
        **_artifact(artifact, report, missing),
        "params": student["params"],
        "macs": student["macs"],
        "compression": {
            "params": _ratio(teacher["params"], student["params"]),
            "macs": _ratio(teacher["macs"], student["macs"]),
            "bytes": _ratio(teacher["size_bytes"], artifact["size_bytes"] if artifact else None),
        },
        **_training(folders, missing),
        "total_s": sum(stage["seconds"] for stage in stages.values()),
        "added_s": sum(stage["seconds"] for stage in stages.values() if not stage["shared"]),
        **_peaks(stages, missing),
        "stages": stages,
        "missing": missing,
    }


def stages_of(folders: Mapping[str, Path], seen: set[Path]) -> dict[str, dict[str, Any]]:
    """Stage -> its folder, what it took, and whether an earlier point has it too."""
    found = {}
    for name, folder in folders.items():
        record = manifest.read(folder)
        found[name] = {
            "folder": folder.name,
            "seconds": record["seconds"],
            "peak_rss_bytes": record.get("peak_rss_bytes"),
            "peak_cuda_bytes": record.get("peak_cuda_bytes"),
            "shared": folder in seen,
        }
    return found


def _peaks(stages: Mapping[str, Mapping[str, Any]], missing: dict[str, str]) -> dict[str, Any]:
    """The largest peak of any stage, of resident memory and of a GPU's."""
    found: dict[str, Any] = {}
    for kind, key in (("memory", "peak_rss_bytes"), ("cuda", "peak_cuda_bytes")):
        highest = max(stages, key=lambda name: stages[name][key] or 0)
        peak = stages[highest][key] or None  # a GPU that held nothing was not used
        found |= {f"peak_{kind}_bytes": peak, f"peak_{kind}_stage": highest if peak else None}
    if found["peak_cuda_bytes"] is None:
        missing["peak_cuda_bytes"] = "no stage used a GPU through torch"
    return found


def seeds_of(recipe: Recipe, report: Mapping[str, Any], folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Test accuracies of student and control, a row a seed; the report has them where there is a control."""
    rows = (report.get("distillation") or {}).get("repeats") or []
    if not rows:
        judged = evaluate.read(folders[evaluate.NAME])["subjects"]
        names = ["student", *(distill.stage_name(distill.NAME, i) for i in range(1, recipe.distill.repeats))]
        rows = [
            {"seed": recipe.seed + i, "student": judged[name]["test"]["value"], "control": None}
            for i, name in enumerate(names)
        ]
    return [
        {**row, "gain_pt": None if row["control"] is None else words_of(report).gap(row["student"], row["control"])}
        for row in rows
    ]


def over_seeds(seeds: Sequence[Mapping[str, Any]], missing: dict[str, str]) -> dict[str, Any]:
    """`seeds`, `accuracy`, `control` and `gain_pt` of a row."""
    controlled = all(seed["control"] is not None for seed in seeds)
    if not controlled:
        missing |= dict.fromkeys(("control", "gain_pt"), "no control was trained (distill.control = false)")
    if len(seeds) < 2:
        missing |= dict.fromkeys(("std", "ci95"), "one seed; --repeats 3 tells how far seeds differ")
    return {
        "seeds": list(seeds),
        "accuracy": summary([seed["student"] for seed in seeds]),
        "control": summary([seed["control"] for seed in seeds]) if controlled else None,
        "gain_pt": summary([seed["gain_pt"] for seed in seeds]) if controlled else None,
    }


def _artifact(artifact: Mapping[str, Any] | None, report: Mapping[str, Any], missing: dict[str, str]) -> dict[str, Any]:
    keys = ("artifact", "artifact_accuracy", "size_bytes")
    if artifact is None:
        missing |= dict.fromkeys(keys, (report.get("selection") or {}).get("reason") or "no artifact was chosen")
        return dict.fromkeys(keys)
    return dict(zip(keys, (artifact["name"], artifact["accuracy"]["value"], artifact["size_bytes"]), strict=True))


def _training(folders: Mapping[str, Path], missing: dict[str, str]) -> dict[str, Any]:
    """Means over the seeds' students; a run of no epoch at all has neither."""
    records = [
        json.loads((folder / distill.TRAINING).read_text(encoding="utf-8"))
        for name, folder in folders.items()
        if name.partition("-seed")[0] == distill.NAME and (folder / distill.TRAINING).is_file()
    ]
    found = {}
    for key in ("s_per_epoch", "teacher_share"):
        values = [record[key] for record in records if record.get(key) is not None]
        found[key] = sum(values) / len(values) if values else None
        if not values:
            missing[key] = "no teacher took part in the training" if key == "teacher_share" else "nothing was trained"
    return found


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def document(
    *, recipe: str, command: str, created: str, engine: str, grid: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """sweep.json without environment and data, which the first report brings."""
    done = [row for row in rows if row["status"] == "done"]
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe,
        "command": command,
        "created": created,
        "engine": engine,
        "grid": dict(grid),
        "environment": None,
        "data": None,
        "points": [dict(row) for row in rows],
        "saved_s": sum(row["total_s"] - row["added_s"] for row in done),
    }


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The point of the highest mean accuracy; None while none is done."""
    done = [row for row in rows if row["status"] == "done"]
    return max(done, key=lambda row: row["accuracy"]["mean"], default=None)
