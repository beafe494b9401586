"""Gate: gather what was measured into one report, choose the artifact, judge it, render the pages."""

from __future__ import annotations

import datetime
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import write_json, write_text
from pipeline.gates.selection import select
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.stages import distill, evaluate, profile, teacher
from pipeline.stages.climb_report import ladder_of
from pipeline.stages.data import NAME as DATA
from pipeline.stages.gate_evidence import add_int8, add_latency
from pipeline.stages.subjects import TORCH, Judged, climbed, judged
from pipeline.tasks import task_of

NAME = "gate"
REPORT = "report.json"
SCHEMA_VERSION = 1


def stage(recipe: Recipe, command: str) -> Stage:
    repeats = tuple(run.name for run in distill.stages(recipe) if "-seed" in run.name)
    return Stage(
        name=NAME,
        version=2,
        needs=(*evaluate.needs(recipe), *repeats, teacher.CHECK, evaluate.NAME, profile.NAME),
        config={
            "gate": [rule.model_dump(mode="json") for rule in recipe.gate],
            "description": recipe.description,
            **({"waiver": [waiver.model_dump(mode="json") for waiver in recipe.waiver]} if recipe.waiver else {}),
            **({"ladder": 1} if climbed(recipe) else {}),  # of what is said of it; other reports stay as they are
        },
        run=functools.partial(run, recipe, command),
    )


def run(recipe: Recipe, command: str, context: Context) -> None:
    """Write report.json, report.md and report.html. A refusal is a result, not an error."""
    from pipeline.gates.judge import judge
    from pipeline.reports.report import render_html, render_markdown

    report = build(recipe, command, context.inputs)
    verdict = judge(report)
    report |= verdict.recorded()
    write_json(context.folder / REPORT, report)
    write_text(context.folder / "report.md", render_markdown(report))
    write_text(context.folder / "report.html", render_html(report))
    context.say(f"gate: {verdict.verdict}: {verdict.sentence}")


def build(recipe: Recipe, command: str, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The report without its verdict: every figure comes from a finished stage's folder."""
    data = json.loads((inputs[DATA] / "data.json").read_text())
    judgement = evaluate.read(inputs[evaluate.NAME])
    measured = profile.read(inputs[profile.NAME])
    manifests = {name: json.loads((folder / "manifest.json").read_text()) for name, folder in inputs.items()}
    found = judged(recipe, inputs)
    subjects = [row(subject, inputs, judgement, measured, manifests) for subject in found]
    add_latency(subjects, inputs[profile.NAME], recipe.gate)
    add_int8(subjects, {subject.name: subject.path for subject in found})
    test = [pair for pair in judgement["comparisons"] if pair["split"] == "test"]
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.model_dump(mode="json", exclude={"smoke"}),
        "environment": manifests[profile.NAME]["environment"] | {"machine": measured["machine"]},
        "data": data,
        "task": described(recipe.task),
        "subjects": subjects,
        "comparisons": test + measured["comparisons"],
        "distillation": distillation(recipe, judgement),
        "stages": {
            # Which run found it fresh is no fact about the result: the same inputs must give the same report.
            name: {"seconds": manifest["seconds"], "peak_rss_bytes": manifest["peak_rss_bytes"], "fresh": None}
            for name, manifest in manifests.items()
        },
        "command": command,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    pictures = inputs[evaluate.NAME] / evaluate.PICTURES
    if pictures.exists():
        report["pictures"] = json.loads(pictures.read_text())
    unfit = json.loads((inputs[teacher.CHECK] / teacher.CHECKED).read_text())["problems"]
    if unfit:
        report["distillation"]["sentence"] += f"; the teacher is not fit to teach: {'; '.join(unfit)}"
    validation = [pair for pair in judgement["comparisons"] if pair["split"] == "validation"]
    report["selection"] = select(report, recipe.gate, validation)
    climb = ladder_of(recipe, inputs, report["selection"])
    if climb:
        report["ladder"] = climb
    return report


def described(name: str) -> dict[str, Any]:
    """What pages need to know of the task: the names and units of its metric."""
    return {key: getattr(task_of(name), key) for key in ("name", "answers", "metric", "title", "show", "unit")}


def row(
    subject: Judged,
    inputs: Mapping[str, Path],
    judgement: Mapping[str, Any],
    measured: Mapping[str, Any],
    manifests: Mapping[str, Any],
) -> dict[str, Any]:
    """One subject of the report; what was not measured is null with its reason in `missing`."""
    name = subject.name
    found = judgement["subjects"][name]
    # The control is the student's own network: counts and size are the same, speed is not measured twice.
    figures = measured["subjects"].get(name) or {
        **measured["subjects"]["student"],
        "latency": [],
        "peak_memory_bytes": None,
        "first_ms": None,
        "energy_j": None,
        "missing": dict.fromkeys(
            ("latency", "throughput_per_s", "peak_memory_bytes", "energy_j"), "the same network as student"
        ),
    }
    against = next(
        (
            p
            for p in judgement["comparisons"]
            if p["subject"] == name and p["against"] == "teacher" and p["split"] == "test"
        ),
        None,
    )
    device = next((entry for entry in figures["latency"] if entry["kind"] == "device"), None)
    latency = [{key: entry[key] for key in LATENCY_KEYS if key in entry} for entry in figures["latency"]] + first_call(
        figures, device
    )
    file = subject.path.relative_to(inputs[subject.stage])
    result: dict[str, Any] = {
        "name": name,
        "role": subject.role,
        "stage": subject.stage,
        "format": subject.format,
        "precision": subject.precision,
        "runtime": subject.runtime,
        "path": f"{inputs[subject.stage].name}/{file}",
        "sha256": manifests[subject.stage]["files"][file.as_posix()]["sha256"],
        "size_bytes": figures["size_bytes"],
        "params": figures["params"],
        "macs": figures["macs"],
        "flops": figures["flops"],
        "uncounted": figures["uncounted"],
        "accuracy": found["test"] | {"validation": found["validation"]["value"]},
        "agreement": against["agree"] / against["n"] if against and "agree" in against else None,
        "latency": latency,
        "throughput_per_s": device["throughput_per_s"] if device else None,
        "peak_memory_bytes": figures["peak_memory_bytes"],
        "energy_j": figures.get("energy_j"),
        "missing": ({} if figures.get("energy_j") else {"energy_j": "it was not measured"}) | figures["missing"],
        "parity": subject.parity,
        "stored": stored(name, found, inputs, manifests),
    }
    if figures.get("device_memory"):  # only a GPU has memory of its own
        result["device_memory"] = figures["device_memory"]
    training = inputs[subject.stage] / distill.TRAINING
    if subject.runtime == TORCH and training.exists():
        result["training"] = json.loads(training.read_text())
    return result


LATENCY_KEYS = (
    "kind",
    "batch",
    "threads",
    "n",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "p90_bound_ms",
    "p99_bound_ms",
    "p99_9_ms",
    "p99_9_bound_ms",
    "mean_ms",
    "contaminated_blocks",
    "blocks",
)


def first_call(figures: Mapping[str, Any], device: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Load to first answer in a fresh process: one sample, so no percentile but the value itself."""
    if figures.get("first_ms") is None or device is None:
        return []
    value = figures["first_ms"]
    nothing = dict.fromkeys(("p90_ms", "p99_ms", "p99_9_ms", "p90_bound_ms", "p99_bound_ms", "p99_9_bound_ms"))
    return [
        {
            "kind": "first",
            "batch": device["batch"],
            "threads": device["threads"],
            "n": 1,
            "p50_ms": value,
            "mean_ms": value,
        }
        | nothing
        | {"contaminated_blocks": 0, "blocks": 0}
    ]


def stored(
    name: str, found: Mapping[str, Any], inputs: Mapping[str, Path], manifests: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the raw arrays lie: file and sha256, so that a figure can be traced to its samples."""
    places = {"outcomes": (evaluate.NAME, found["outcomes"])}
    places |= {f"latency_{kind}": (profile.NAME, f"latency-{kind}-{name}.npy") for kind in profile.KINDS}
    return {
        what: {"path": f"{inputs[stage].name}/{file}", "sha256": manifests[stage]["files"][file]["sha256"]}
        for what, (stage, file) in places.items()
        if file in manifests[stage]["files"]
    }


def distillation(recipe: Recipe, judgement: Mapping[str, Any]) -> dict[str, Any]:
    """Did it help? The student against the control of the same budget, over all seeds; paired on one seed."""
    task = task_of(recipe.task)
    subjects = judgement["subjects"]
    student = subjects["student"]["test"]["value"]
    if not recipe.distill.control:
        sentence = "no control was trained (distill.control = false), so whether distillation helped is not known"
        return {
            "helped": None,
            "student": student,
            "control": None,
            "gain_pt": None,
            "gain": None,
            "unit": task.unit,
            "ci": None,
            "repeats": [],
            "sentence": sentence,
        }
    seeds = [
        {
            "seed": recipe.seed + repeat,
            "student": subjects["student" if repeat == 0 else distill.stage_name(distill.NAME, repeat)]["test"][
                "value"
            ],
            "control": subjects["control" if repeat == 0 else distill.stage_name(distill.CONTROL, repeat)]["test"][
                "value"
            ],
        }
        for repeat in range(recipe.distill.repeats)
    ]
    factor = 100 if task.unit == "pt" else 1
    gains = [factor * (seed["student"] - seed["control"]) for seed in seeds]
    gain = sum(gains) / len(gains)
    if len(gains) > 1:
        low, high = t_interval(gains)
        over = f"mean of {len(gains)} seeds, 95 % interval over seeds"
    else:
        pair = next(
            p
            for p in judgement["comparisons"]
            if p["subject"] == "student" and p["against"] == "control" and p["split"] == "test"
        )  # the first is in the task's own metric
        _, low, high = task.gain(pair)
        over = "one seed, 95 % interval over the test samples"
    helped = True if low > 0 else False if high < 0 else None
    verb = {True: "helped", False: "hurt", None: "made no difference that can be told from chance"}[helped]
    unit = f" {task.unit}" if task.unit else ""
    digits = 3 if task.unit == "dB" else 2 if task.unit else 4
    gained, lowest, highest = (f"{value:+.{digits}f}" for value in (gain, low, high))
    sentence = f"distillation {verb}: {gained}{unit} against the control ({lowest} to {highest}; {over})"
    return {
        "helped": helped,
        "student": student,
        "control": subjects["control"]["test"]["value"],
        "gain_pt": gain if task.unit == "pt" else None,
        "gain": gain,
        "unit": task.unit,
        "ci": [low, high],
        "repeats": seeds,
        "sentence": sentence,
    }


def t_interval(values: list[float]) -> tuple[float, float]:
    """Two-sided 95 % interval of the mean by Student's t."""
    from scipy import stats

    n = len(values)
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean - half, mean + half
