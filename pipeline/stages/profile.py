"""Profile: latency of teacher and artifacts side by side, energy, memory and first call in fresh processes, size."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import write_json, writing
from pipeline.recipe import Recipe
from pipeline.stage import Context, Stage
from pipeline.stages.data import NAME as DATA
from pipeline.stages.data import Prepared, prepared
from pipeline.stages.evaluate import needs, runtime_stamp
from pipeline.stages.subjects import Judged, judged, opened

NAME = "profile"
INDEX = "profile.json"
KINDS = ("device", "end_to_end")
CONFIDENCE = 0.99
PROBE_TIMEOUT_S = 120.0


def stage(recipe: Recipe) -> Stage:
    return Stage(
        name=NAME,
        version=3,
        needs=needs(recipe),
        config={"profile": recipe.profile.model_dump(mode="json"), "seed": recipe.seed},
        stamp=functools.partial(runtime_stamp, recipe),
        run=functools.partial(run, recipe),
    )


def run(recipe: Recipe, context: Context) -> None:
    """Write profile.json, latency-KIND-SUBJECT.npy (int64 nanoseconds and block numbers, two rows) and states-KIND.json
    (subject -> block -> the state of the machine).
    """
    from profiles.machine import machine

    data = prepared(recipe, context.inputs[DATA])
    # The control is the student's network with other weights: it has the student's speed.
    subjects = [subject for subject in judged(recipe, context.inputs) if subject.name != "control"]
    index: dict[str, Any] = {"machine": machine(), "subjects": {}, "comparisons": []}
    for subject in subjects:
        index["subjects"][subject.name] = {"latency": []} | counted(subject, recipe, data) | cold(subject, recipe, data)
    seconds = recipe.profile.min_seconds * len(subjects) * len(KINDS) * 4 / 3
    context.say(
        f"profile: {len(subjects)} subjects interleaved, {recipe.profile.threads} thread(s), about {seconds:.0f} s"
    )
    for kind in KINDS:
        measure(kind, subjects, recipe, data, context.folder, index)
    write_json(context.folder / INDEX, index)


def measure(
    kind: Any, subjects: list[Judged], recipe: Recipe, data: Prepared, folder: Path, index: dict[str, Any]
) -> None:
    from profiles.latency import measure_latency

    with opened(subjects, recipe, threads=recipe.profile.threads, batch=recipe.profile.batch) as runners:
        feeds = {}
        for name, subject in runners.items():
            spec = subject.runner.inputs[0]
            batch = spec.shape[0] if isinstance(spec.shape[0], int) else recipe.profile.batch
            chosen = np.resize(data.validation, batch)
            feeds[name] = {spec.name: subject.preprocess(data.validation_images.load(chosen))}
        states: dict[str, Any] = {}
        groups: dict[int, list[str]] = {}  # unequal batches must not be compared, so they are not interleaved either
        for name, feed in feeds.items():
            groups.setdefault(len(next(iter(feed.values()))), []).append(name)
        for names in groups.values():
            results = measure_latency(
                {name: runners[name].runner for name in names},
                {name: feeds[name] for name in names},
                min_seconds=recipe.profile.min_seconds,
                blocks=recipe.profile.blocks,
                kind=kind,
            )
            for name, result in results.items():
                with writing(folder / f"latency-{kind}-{name}.npy") as path, path.open("wb") as file:
                    np.save(file, np.stack([result.samples_ns, result.block.astype(np.int64)]))
                states[name] = {"blocks": result.state_rows(), "untold": dict(result.untold)}
                index["subjects"][name]["latency"].append(result.row())
                index["subjects"][name]["versions"] = dict(runners[name].runner.versions)
            index["comparisons"] += ratios(kind, subjects, results)
        write_json(folder / f"states-{kind}.json", states)
        if kind == KINDS[0]:
            for name, feed in feeds.items():
                found = energy(runners[name].runner, feed, recipe)
                reasons = index["subjects"][name]["missing"] | found["missing"]
                index["subjects"][name] |= found | {"missing": reasons}


def energy(runner: Any, feeds: Any, recipe: Recipe) -> dict[str, Any]:
    """Joules an image by the sensors of this machine, with what they are an estimate of; None with its reason."""
    from profiles.errors import ProfileError
    from profiles.latency import query_of
    from profiles.power import measure_energy, meter
    from profiles.runner import bus_id_of

    nothing: dict[str, Any] = {"energy_j": None, "energy": None}
    sensor = meter(recipe.profile.device, bus_id=bus_id_of(runner))
    if isinstance(sensor, str):
        return nothing | {"missing": {"energy_j": sensor}}
    batch = len(next(iter(feeds.values())))
    try:
        found = measure_energy(query_of(runner, feeds), sensor, batch=batch, seconds=recipe.profile.min_seconds)
    except ProfileError as error:
        return nothing | {"missing": {"energy_j": str(error)}}
    return {"energy_j": found.energy_j, "energy": found.row(), "missing": {}}


def ratios(kind: str, subjects: list[Judged], results: Any) -> list[dict[str, Any]]:
    """Each artifact against the teacher on its runtime, the teacher and student on torch, and fp32 on its runtime."""
    from profiles.stats import ratio_of_medians

    rows = []
    for subject in subjects:
        baselines = (f"teacher@{subject.runtime}", "teacher", "student", f"onnx-fp32@{subject.runtime}")
        for against in baselines:
            if against == subject.name or against not in results or subject.name not in results:
                continue
            a, b = results[subject.name], results[against]
            interval = ratio_of_medians(b.samples_ns, b.block, a.samples_ns, a.block, confidence=CONFIDENCE)
            rows.append(
                {
                    "kind": "latency",
                    "latency_kind": kind,
                    "subject": subject.name,
                    "against": against,
                    "batch": a.batch,
                    "threads": a.threads,
                    "blocks_ms": {
                        "subject": [float(value) for value in a.block_medians_ms],
                        "against": [float(value) for value in b.block_medians_ms],
                    },
                    "ratio": interval.value,
                    "ratio_lower": interval.lower,
                    "ratio_upper": interval.upper,
                    "confidence": CONFIDENCE,
                }
            )
    return rows


def counted(subject: Judged, recipe: Recipe, data: Prepared) -> dict[str, Any]:
    """Parameters, MACs, FLOPs (2 a MAC) of one image, and the operations not counted; size of the file."""
    from exporters import MODULE_RUNTIMES
    from profiles.flops import count_onnx, count_torch
    from profiles.size import size_bytes

    shape = (1, *data.input_size)
    if subject.runtime in MODULE_RUNTIMES and subject.counted is None:
        from pipeline.models.checkpoint import load_checkpoint

        counts, batch = count_torch(load_checkpoint(subject.path)[0], shape), 1
    else:
        from exporters.artifact import input_specs

        form = recipe.export[0]
        batch = recipe.profile.batch if form.dynamic_batch else form.batch
        path = subject.counted or subject.path
        counts = count_onnx(path, {input_specs(path)[0].name: (batch, *data.input_size)})
    return {
        "params": counts.params,
        "macs": counts.macs // batch,
        "flops": counts.flops // batch,
        "uncounted": counts.uncounted,
        "size_bytes": size_bytes(subject.path),
    }


def cold(subject: Judged, recipe: Recipe, data: Prepared) -> dict[str, Any]:
    """Peak memory, on the device too, and first call of a fresh process; one that died leaves null and its reason."""
    from exporters import MODULE_RUNTIMES
    from profiles.errors import ProfileError
    from profiles.isolate import call
    from profiles.memory import why_no_device_memory

    request: dict[str, Any] = {
        "runtime": subject.runtime,
        "threads": recipe.profile.threads,
        "device": recipe.profile.device,
    }
    if subject.runtime in MODULE_RUNTIMES or recipe.export[0].dynamic_batch:
        request["shape"] = [recipe.profile.batch, *data.input_size]
    if subject.runtime in MODULE_RUNTIMES:
        request["precision"] = subject.precision
        request |= {"builder": "pipeline.stages.subjects:load_module", "args": {"checkpoint": str(subject.path)}}
    else:
        request["path"] = str(subject.path)
    try:
        result = call("exporters.probe:cold_start", request, timeout_s=PROBE_TIMEOUT_S)
    except ProfileError as error:
        nothing = dict.fromkeys(("peak_memory_bytes", "device_memory", "first_ms"))
        return nothing | {"missing": {"peak_memory_bytes": str(error)}}
    counted_there = result.value["device_memory"]
    why = None if counted_there else why_no_device_memory(subject.runtime, recipe.profile.device)
    return {
        "peak_memory_bytes": result.peak_rss_bytes,
        "device_memory": counted_there,
        "first_ms": result.value["load_ms"] + result.value["first_ms"],
        "missing": {"device_memory": why} if why else {},
    }


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text())
