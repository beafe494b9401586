"""The rung that leaves layers in float: as few as the rules allow, and of those the fastest by measured milliseconds.

Layers are ranked by their sensitivity on real calibration samples; a bisection over the ranked list finds how many must
stay in float; then each of these is tried in int8 once more, the least sensitive first. Every candidate's accuracy is
judged on the validation split, and the latency of all of them is measured side by side on the runtime.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.ladder import State, better, faster, fewest, reaches
from pipeline.stages.rungs import Bench

MOST_TRIED_AGAIN = 8  # layers that are tried in int8 once more


def climb_float_layers(
    bench: Bench,
    path: Path,
    *,
    source: Path,
    stream: Any,
    folder: Path,
    settings: dict[str, Any],
    target: State,
) -> dict[str, Any]:
    """Write the chosen candidate at `path`; its record, with `kept_fp32`, `candidates` (what each costs and wins) and
    `sensitivity`. Where no candidate reaches `target` the best one is recorded as it stands."""
    from exporters.artifact import ExportError
    from exporters.quantize_onnx import quantize_int8
    from exporters.sensitivity import layer_sensitivity

    plain = {key: value for key, value in settings.items() if key != "bias_correction"}
    ranking = layer_sensitivity(source, form=bench.form, batches=stream, **plain)
    order = [layer.node for layer in ranking.layers]
    labels = {layer.node: layer.label for layer in ranking.layers}
    tried: dict[tuple[str, ...], dict[str, Any]] = {}

    def attempt(nodes: tuple[str, ...]) -> bool:
        if nodes not in tried:
            made = folder / f"{bench.form}-float-{len(tried)}.onnx"
            options: dict[str, Any] = settings | {"keep_fp32": [*settings["keep_fp32"], *nodes]}
            try:
                quantize_int8(source, made, form=bench.form, batches=stream, **options)
            except ExportError as error:  # a layer between others that quantize all it reads and makes
                tried[nodes] = {"left_out": str(error).replace(f"{source}: ", "")}
                return False
            tried[nodes] = bench.judge(made) | {"file": made}
        found = tried[nodes]
        return "state" in found and reaches(found["state"], target)

    count = fewest(len(order) - 1, lambda k: attempt(tuple(order[:k]))) if len(order) > 1 else None
    if count is not None:
        chosen = tuple(order[:count])
        for node in reversed(chosen[-MOST_TRIED_AGAIN:]):
            fewer = tuple(name for name in chosen if name != node)
            if fewer and attempt(fewer):
                chosen = fewer
    judged = {nodes: found for nodes, found in tried.items() if "state" in found}
    if not judged:
        raise ExportError(f"no layer can be left in float by itself: {next(iter(tried.values()))['left_out']}")
    times = bench.time({str(place): found["file"] for place, found in enumerate(judged.values())})
    judged = {nodes: found | times[str(place)] for place, (nodes, found) in enumerate(judged.items())}
    nodes = _chosen(judged, target)
    best = judged[nodes]
    shutil.copyfile(best["file"], path)
    candidates = [
        {
            "kept_fp32": [labels[node] for node in each],
            "value": found["accuracy"]["value"],
            "state": found["state"],
            "p50_ms": found["p50_ms"],
            "chosen": each == nodes,
        }
        for each, found in sorted(judged.items(), key=lambda item: len(item[0]))
    ]
    record = {key: value for key, value in best.items() if key != "file"}
    return record | {
        "kept_fp32": [labels[node] for node in nodes],
        "candidates": candidates,
        "left_out_candidates": [found["left_out"] for found in tried.values() if "left_out" in found],
        "sensitivity": ranking.to_json(),
    }


def _chosen(judged: dict[tuple[str, ...], dict[str, Any]], target: State) -> tuple[str, ...]:
    """Of those that reach the target the fastest, int8 that is no faster than float coming last, or where none is timed
    that with the fewest layers; else the best."""
    reached = [nodes for nodes, found in judged.items() if reaches(found["state"], target)]
    if reached:
        return min(
            reached, key=lambda nodes: (faster(judged[nodes]) is False, judged[nodes]["p50_ms"] or 0.0, len(nodes))
        )
    best = next(iter(judged))
    for nodes, found in judged.items():
        best = nodes if better(found, judged[best]) else best
    return best
