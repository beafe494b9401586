"""Measure a bundle where it will run: accuracy on its gate set, latency of every artifact on every runtime that runs
here, and of the teacher. The record is a report of its own, bound to the sha256 of the bytes that ran. Without torch.

The work is done by the very functions of the evaluate, profile and gate stages; this module puts the bundle's files in
the place of a run's folders.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import write_json, write_text
from pipeline.bundle.contents import Bundle
from pipeline.bundle.here import Say, device_here, subjects_of
from pipeline.bundle.layout import SPLITS, model_files
from pipeline.bundle.settings import measured_recipe
from pipeline.data.source import InMemory, Source
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.gates.selection import select
from pipeline.manifest import hash_files, sha256_file
from pipeline.recipe import Recipe
from pipeline.registry import resolve
from pipeline.stages import evaluate as evaluate_stage
from pipeline.stages import gate as gate_stage
from pipeline.stages import profile as profile_stage
from pipeline.stages.data import Prepared
from pipeline.stages.gate_evidence import add_int8, add_latency
from pipeline.stages.subjects import TORCH, Judged, opened
from pipeline.tasks import TASKS
from pipeline.tasks.groups import LABEL, SLICE

RECORDED = "recorded on the host; torch does not run here"
FIELDS = ("latency", "throughput_per_s", "peak_memory_bytes", "energy_j")


def measure(
    bundle: Bundle, out: Path, profile: Mapping[str, Any], *, command: str, memory: bool = True, say: Say = print
) -> dict[str, Any]:
    """The record of `bundle` on this machine, written to the folder `out` beside the raw samples.

    `profile` has settings that take the place of the recipe's, such as {"threads": 2}; without a device in it, the GPU
    is measured where there is one and a runtime for it. Raises UserError, one line, when no runtime is installed, none
    loads an artifact, or a file changed while it was measured.
    """
    from pipeline.environment import collect
    from pipeline.gates.judge import judge
    from pipeline.reports.report import render_html, render_markdown
    from profiles.machine import machine

    settings = {"runtimes": "auto"} | dict(profile)
    recipe, recorded = measured_recipe(bundle.report, str(bundle.path), profile=settings, gate=bundle.rules)
    if "device" not in settings:
        settings["device"], why = device_here(recipe.profile)
        say(f"device: {settings['device']}, {why}")
        recipe, recorded = measured_recipe(bundle.report, str(bundle.path), profile=settings, gate=bundle.rules)
    data = gate_set(bundle)
    host = machine()
    found = subjects_of(bundle, recipe, data, say)
    judgement, references = judged_on(bundle, recipe, data, found.running, out / evaluate_stage.NAME, say)
    measured = timed(found.running, recipe, data, out / profile_stage.NAME, memory=memory, say=say)
    report: dict[str, Any] = {
        "schema_version": gate_stage.SCHEMA_VERSION,
        "recipe": recorded,
        "environment": collect() | {"machine": host},
        "data": facts(bundle),
        "subjects": references
        + rows(bundle, found.running, judgement, measured, out)
        + [absent(bundle, subject, why) for subject, why in found.left_out.values()],
        "comparisons": [pair for pair in judgement["comparisons"] if pair["split"] == "test"] + measured["comparisons"],
        "bundle": {
            "manifest_sha256": bundle.manifest_sha256,
            "made_with": bundle.manifest.made_with,
            "samples": {split: bundle.manifest.samples[split].model_dump() for split in SPLITS},  # type: ignore[index]
            **({"left_out": bundle.manifest.left_out} if bundle.manifest.left_out else {}),
        },
        "command": command,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    validation = [pair for pair in judgement["comparisons"] if pair["split"] == "validation"]
    report["selection"] = select(report, recipe.gate, validation)
    add_latency(report["subjects"], out / profile_stage.NAME, recipe.gate)
    add_int8(report["subjects"], {subject.name: subject.path for subject in found.running})
    report |= judge(report).recorded()
    write_json(out / gate_stage.REPORT, report)
    write_text(out / "report.md", render_markdown(report))
    write_text(out / "report.html", render_html(report))
    return report


def gate_set(bundle: Bundle) -> Prepared:
    """The bundle's samples as a data set: its test split judges, its validation split chooses, nothing is trained."""
    (validation, validation_labels), (test, test_labels) = (bundle.samples(split) for split in SPLITS)
    classes = tuple(bundle.report["data"]["class_names"])
    source = Source(
        name=str(bundle.report["data"].get("name")),
        class_names=classes,
        train=InMemory(np.asarray(validation), np.array(validation_labels, np.int64)),
        test=InMemory(np.asarray(test), np.array(test_labels, np.int64)),
        fingerprint=bundle.manifest_sha256,
        slices=bundle.slices(),
    )
    none = np.zeros(0, np.int64)
    return Prepared(
        source=source,
        facts={"image_shape": bundle.manifest.image_shape, "class_names": list(classes)},
        train=none,
        validation=np.arange(len(validation)),
        test=np.arange(len(test)),
        calibration=none,
    )


def facts(bundle: Bundle) -> dict[str, Any]:
    """The report's facts on the data, with the sizes of what was judged here."""
    sizes = {split: bundle.manifest.samples[split].n for split in SPLITS}  # type: ignore[index]
    return {**bundle.report["data"], "sizes": {**dict(bundle.report["data"].get("sizes") or {}), **sizes}}


def judged_on(
    bundle: Bundle, recipe: Recipe, data: Prepared, subjects: list[Judged], folder: Path, say: Say
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What evaluate.json of a run has, and the rows of the networks whose outcomes came with the bundle."""
    task = resolve(TASKS, bundle.manifest.task, what="task")
    references = {
        name: {split: bundle.outcomes(name, split) for split in SPLITS} for name in bundle.manifest.references
    }
    outcomes: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    slices = {f"{SLICE}{key}": column.codes for key, column in data.source.slices.items()}
    with opened(subjects, recipe, threads=recipe.profile.threads) as runners:
        for split, images in (("validation", data.source.train), ("test", data.source.test)):
            say(f"evaluate: {len(subjects)} subjects on {len(images):,} {split} images")
            outcomes[split] = evaluate(runners, images, np.arange(len(images)), task)
            for name, recorded in references.items():
                if not np.array_equal(recorded[split]["prediction"] == images.labels, recorded[split]["correct"]):
                    raise UserError(f"{bundle.path}: the outcomes of {name} contradict its labels; make it again")
                recorded[split][LABEL] = images.labels.astype(np.int32)
    for rows_of_one in (*outcomes["test"].values(), *(recorded["test"] for recorded in references.values())):
        rows_of_one.update(slices)
    index: dict[str, Any] = {"subjects": {}, "comparisons": []}
    for subject in subjects:
        mine = {split: outcomes[split][subject.name] for split in SPLITS}
        index["subjects"][subject.name] = {split: task.summary(mine[split]) for split in SPLITS} | {
            "outcomes": evaluate_stage.write_outcomes(folder, subject.name, outcomes)
        }
        for against, recorded in references.items():
            for split in SPLITS:
                counts = task.pair(mine[split], recorded[split])
                row = {"kind": "accuracy", "subject": subject.name, "against": against, "split": split}
                index["comparisons"].append(row | counts)
    teacher = references.get("teacher")
    made = []
    for name, recorded in references.items():
        host = next((row for row in bundle.report["subjects"] if row.get("name") == name), {})
        summary = {split: task.summary(recorded[split]) for split in SPLITS}
        agree = task.pair(recorded["test"], teacher["test"]) if teacher and name != "teacher" else None
        row = dict.fromkeys(("path", "sha256", "size_bytes", "params", "macs", "flops", "uncounted"))
        made.append(
            {"name": name, "role": name, "stage": str(host.get("stage") or name), "format": TORCH, "precision": "fp32"}
            | {"runtime": TORCH}
            | {key: host.get(key) for key in row}
            | {"accuracy": summary["test"] | {"validation": summary["validation"]["value"]}}
            | {"agreement": agree["agree"] / agree["n"] if agree else None}
            | {"latency": [], "throughput_per_s": None, "peak_memory_bytes": None, "energy_j": None}
            | {"missing": dict.fromkeys(FIELDS, RECORDED), "parity": None}
        )
        for other in ("teacher", "control"):
            if other != name and other in references and name != "teacher":
                counts = task.pair(recorded["test"], references[other]["test"])
                index["comparisons"].append(
                    {"kind": "accuracy", "subject": name, "against": other, "split": "test", **counts}
                )
    return index, made


def timed(
    subjects: list[Judged], recipe: Recipe, data: Prepared, folder: Path, *, memory: bool, say: Say
) -> dict[str, Any]:
    """What profile.json of a run has: all subjects interleaved, then each in a fresh process."""
    index: dict[str, Any] = {"subjects": {}, "comparisons": []}
    not_asked = {"peak_memory_bytes": None, "first_ms": None, "missing": {"peak_memory_bytes": "--no-memory was given"}}
    for subject in subjects:
        cold = profile_stage.cold(subject, recipe, data) if memory else dict(not_asked)
        index["subjects"][subject.name] = {"latency": []} | profile_stage.counted(subject, recipe, data) | cold
    seconds = recipe.profile.min_seconds * len(subjects) * len(profile_stage.KINDS) * 4 / 3
    say(f"profile: {len(subjects)} subjects interleaved, {recipe.profile.threads} thread(s), about {seconds:.0f} s")
    for kind in profile_stage.KINDS:
        profile_stage.measure(kind, subjects, recipe, data, folder, index)
    return index


def rows(
    bundle: Bundle, subjects: list[Judged], judgement: Mapping[str, Any], measured: Mapping[str, Any], out: Path
) -> list[dict[str, Any]]:
    """Rows of the report. The files are hashed once more, after they ran: those hashes stand in the record."""
    stages = {model.stage for model in bundle.manifest.models.values()}
    inputs = dict.fromkeys(stages, bundle.folder / "models")
    inputs |= {name: out / name for name in (evaluate_stage.NAME, profile_stage.NAME)}
    ran = {}
    for file in dict.fromkeys(file for subject in subjects for file in files_of(subject)):
        ran[Path(file).name] = {"sha256": sha256_file(bundle.folder / file)}
        if ran[Path(file).name]["sha256"] != bundle.manifest.files[file].sha256:
            raise UserError(f"{bundle.path}: {file} changed while it was measured; measure again")
    manifests: dict[str, Any] = {stage: {"files": ran} for stage in stages}
    manifests |= {name: {"files": hash_files(out / name)} for name in (evaluate_stage.NAME, profile_stage.NAME)}
    return [gate_stage.row(subject, inputs, judgement, measured, manifests) for subject in subjects]


def files_of(subject: Judged) -> tuple[str, ...]:
    """The files of its model in the bundle."""
    return model_files(subject.name.partition("@")[0], subject.format)


def absent(bundle: Bundle, subject: Judged, why: str) -> dict[str, Any]:
    """The row of a model that a runtime here does not load: nothing was measured, for that reason."""
    files = [bundle.manifest.files[file] for file in files_of(subject)]
    return {
        "name": subject.name,
        "role": subject.role,
        "stage": subject.stage,
        "format": subject.format,
        "precision": subject.precision,
        "runtime": subject.runtime,
        "path": f"models/{subject.path.name}",
        "sha256": files[0].sha256,
        "size_bytes": sum(file.size for file in files),
        **dict.fromkeys(("params", "macs", "flops", "uncounted", "accuracy", "agreement")),
        "latency": [],
        **dict.fromkeys(FIELDS[1:]),
        "missing": dict.fromkeys(("accuracy", *FIELDS), why),
        "parity": None,
    }
