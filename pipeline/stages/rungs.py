"""One rung of the precision ladder measured: accuracy on the validation split, latency on the runtime, interleaved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import write_json
from pipeline.evaluate import evaluate
from pipeline.ladder import accuracy_rules, standing
from pipeline.manifest import sha256_file
from pipeline.recipe import Recipe
from pipeline.stages.data import Prepared
from pipeline.stages.subjects import NVIDIA, Judged, judged, opened, runtimes
from pipeline.tasks import task_of

NVIDIA_FORMS = frozenset(("gpu", "trt86"))
# The runtimes that a form is made for, best first. ONNX Runtime's CPU provider runs the files for NVIDIA's too, and so
# judges their accuracy where no GPU is; their latency there says nothing of a GPU.
HOME = {
    "portable": ("openvino",),
    "cpu": ("onnxruntime",),
    **dict.fromkeys(NVIDIA_FORMS, (*NVIDIA, "onnxruntime")),
}
NOT_TIMED = "it is made for NVIDIA's runtimes, and none of them runs here"
FLOAT = ("onnx-fp32", "onnx-fp16")
SECONDS = 1.0  # of latency a subject at most: a rung is compared, the profile stage measures what ships
CONFIDENCE = 0.99


def home(form: str, recipe: Recipe) -> str | None:
    """The runtime on which a form is judged here; None where none runs files."""
    available = runtimes(recipe)
    return next((name for name in (*HOME.get(form, ()), *available) if name in available), None)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What rungs of one form are measured against, on one runtime.

    baselines: subjects that the rules compare with, and the float artifacts, by their names in the report. outcomes:
    theirs on the validation split.
    """

    recipe: Recipe
    data: Prepared
    form: Any
    runtime: str
    stage: str
    baselines: Mapping[str, Judged]
    outcomes: Mapping[str, dict[str, np.ndarray]]

    @property
    def timed(self) -> bool:
        """Whether latencies on this runtime say anything of the form."""
        return self.form not in NVIDIA_FORMS or self.runtime in NVIDIA

    def subject(self, path: Path, name: str = "") -> Judged:
        return Judged(
            name=name or f"{path.stem}@{self.runtime}",
            role="artifact",
            stage=self.stage,
            format="onnx",
            precision="int8",
            runtime=self.runtime,
            path=path,
        )

    def judge(self, path: Path) -> dict[str, Any]:
        """`accuracy` (the summary on the validation split), `state` and `checks` of the file at `path`."""
        return self.standing_of(self.subject(path))

    def standing_of(self, subject: Judged) -> dict[str, Any]:
        task = task_of(self.recipe.task)
        mine = self.outcomes.get(subject.name)
        if mine is None:
            mine = outcomes_of([subject], self.recipe, self.data)[subject.name]
        pairs = [
            {"kind": row["kind"], "subject": subject.name, "against": against, "split": "validation", **row}
            for against, theirs in self.outcomes.items()
            if against != subject.name
            for row in task.comparisons(mine, theirs)
        ]
        accuracy = task.summary(mine)
        rules = accuracy_rules(self.recipe.gate)
        found = standing(subject.name, accuracy, pairs, rules, gate_n=len(self.data.test))
        return {"accuracy": accuracy, **found}

    def time(self, paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """Label -> `p50_ms`, `n`, `threads`, `batch`, and `against`: how many times as fast as each float artifact on
        this runtime, with one-sided 99 % bounds. All are interleaved in one measurement. Null with the reason in
        `missing` where the runtime only stands in for those that the form is made for."""
        if not self.timed:
            nothing = dict.fromkeys(("p50_ms", "n", "threads", "batch"))
            return {label: nothing | {"against": {}, "missing": {"p50_ms": NOT_TIMED}} for label in paths}
        floats = {name: each for name, each in self.baselines.items() if name.partition("@")[0] in FLOAT}
        floats = {name: each for name, each in floats.items() if each.runtime == self.runtime}
        subjects = [*floats.values(), *(self.subject(path, label) for label, path in paths.items())]
        results = latencies(subjects, self.recipe, self.data)
        found = {}
        for label in paths:
            row = results[label].row()
            against = {name.partition("@")[0]: _ratio(results[name], results[label]) for name in floats}
            found[label] = {key: row[key] for key in ("p50_ms", "n", "threads", "batch")} | {"against": against}
        return found


def open_bench(recipe: Recipe, data: Prepared, inputs: Mapping[str, Path], *, form: str, stage: str) -> Bench | None:
    """The bench of one form, its baselines judged; None where no runtime here runs the form."""
    runtime = home(form, recipe)
    if runtime is None:
        return None
    wanted = {rule.against for rule in accuracy_rules(recipe.gate) if rule.against}
    wanted |= {f"{name}@{runtime}" for name in FLOAT}
    baselines = {subject.name: subject for subject in judged(recipe, inputs) if subject.name in wanted}
    found = outcomes_of(list(baselines.values()), recipe, data)
    return Bench(recipe=recipe, data=data, form=form, runtime=runtime, stage=stage, baselines=baselines, outcomes=found)


def outcomes_of(subjects: list[Judged], recipe: Recipe, data: Prepared) -> dict[str, dict[str, np.ndarray]]:
    """Outcomes of each on the validation split, whose images train nothing; the gate set is not looked at."""
    with opened(subjects, recipe, threads=recipe.profile.threads) as runners:
        return evaluate(runners, data.validation_images, data.validation, task_of(recipe.task))


def latencies(subjects: list[Judged], recipe: Recipe, data: Prepared) -> dict[str, Any]:
    """Device time of all, interleaved, as the profile stage measures it but shorter."""
    from profiles.latency import measure_latency

    with opened(subjects, recipe, threads=recipe.profile.threads, batch=recipe.profile.batch) as runners:
        feeds = {}
        for name, subject in runners.items():
            spec = subject.runner.inputs[0]
            batch = spec.shape[0] if isinstance(spec.shape[0], int) else recipe.profile.batch
            images = data.validation_images.load(np.resize(data.validation, batch))
            feeds[name] = {spec.name: subject.preprocess(images)}
        return dict(
            measure_latency(
                {name: subject.runner for name, subject in runners.items()},
                feeds,
                min_seconds=min(SECONDS, recipe.profile.min_seconds),
                blocks=recipe.profile.blocks,
                kind="device",
            )
        )


def _ratio(slow: Any, fast: Any) -> dict[str, Any]:
    from profiles.stats import ratio_of_medians

    found = ratio_of_medians(slow.samples_ns, slow.block, fast.samples_ns, fast.block, confidence=CONFIDENCE)
    return {"ratio": found.value, "lower": found.lower, "upper": found.upper}


def kept(folder: Path, key: str, work: Callable[[Path], dict[str, Any]], say: Callable[[str], None]) -> dict[str, Any]:
    """The record of the rung `key`: of an interrupted run where its file is whole, else that of `work`.

    `work` writes the file at the path that it is given, or none, and returns the record. The record is written last,
    with the file's hash, so that a rung is either whole or done again.
    """
    record = whole(folder, key)
    if record is not None:
        say(f"{key} was done before the interruption, and is taken as it is")
        return record
    path = folder / f"{key}.onnx"
    record = work(path)
    record["file_sha256"] = sha256_file(path) if path.is_file() else None
    write_json(folder / f"{key}.json", record)
    return record


def whole(folder: Path, key: str) -> dict[str, Any] | None:
    """The record of a rung that an interrupted run finished, if its file is the one that was judged; else None."""
    path, note = folder / f"{key}.onnx", folder / f"{key}.json"
    try:
        record = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    return record if record["file_sha256"] == (sha256_file(path) if path.is_file() else None) else None
