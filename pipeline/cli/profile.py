"""`edgestill profile`: latency, throughput and memory of any subjects on this machine, interleaved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from pipeline.cli.arguments import InputShape, Subject, input_option, json_option, subject_of
from pipeline.cli.output import plain, print_json, say_next
from pipeline.cli.profile_depth import Depth, depth_options, feeds_of, look_deeper, show_depth
from pipeline.cli.profile_subjects import Candidate, candidates_of, device_of
from pipeline.errors import UserError

KINDS = {"device": ("device",), "end-to-end": ("end_to_end",), "both": ("device", "end_to_end")}
CONFIDENCE = 0.99
PROBE_TIMEOUT_S = 300.0


@click.command()
@click.argument("subjects", nargs=-1, required=True)
@click.option("--against", metavar="SUBJECT", help="What the others are compared with; without, the first subject.")
@input_option
@click.option("--classes", type=click.IntRange(min=1), help="Outputs of models by name.")
@click.option("--runtime", "runtimes", multiple=True, help="For ONNX files, may be repeated; without, all installed.")
@click.option(
    "--device",
    help="cpu, or cuda:0; without, cuda:0 for an engine, and for a bundle where there is a GPU and a runtime for it; "
    "else the cpu.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="The same for every runtime.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.05), help="Measured time a subject.")
@click.option("--blocks", default=30, show_default=True, type=click.IntRange(min=2), help="Interleaved rounds.")
@click.option("--kind", default="device", show_default=True, type=click.Choice(list(KINDS)), help="What is timed.")
@click.option("--memory/--no-memory", default=True, help="Peak memory and first call, each in a fresh process.")
@depth_options
@click.option("--out", type=click.Path(path_type=Path), help="Of a bundle: the folder for its record.")
@json_option
@click.pass_context
def profile(
    ctx: click.Context,
    subjects: tuple[str, ...],
    against: str | None,
    inputs: tuple[InputShape, ...],
    classes: int | None,
    runtimes: tuple[str, ...],
    device: str | None,
    threads: int,
    seconds: float,
    blocks: int,
    kind: str,
    memory: bool,
    out: Path | None,
    as_json: bool,
    **depth: Any,
) -> None:
    """Measure SUBJECTS side by side: any ONNX file (on every installed runtime, or FILE@openvino on one), a model
    name or a checkpoint (both on torch), a TensorRT engine (.engine, with the file beside it; on a GPU). Or one
    bundle: accuracy and latency of all that is in it, on the GPU where one can be used (--device cpu for the other),
    and the verdict.

    Subjects take turns in blocks, so that whatever drifts meets all of them; a ratio has a 99 % interval over blocks.
    """
    from pipeline.cli.bundle import is_bundle, profile_bundle
    from pipeline.cli.profile_table import show_all
    from profiles.machine import machine

    if any(is_bundle(text) for text in subjects):
        profile_bundle(ctx)
        return
    if out is not None:
        raise UserError(f"--out {out}: only of a bundle; --json prints what was measured")
    wanted = Depth(**depth)
    wanted.check()
    told: list[str] = list(dict.fromkeys((*((against,) if against else ()), *subjects)))
    where = device or device_of(told)
    candidates = {
        c.name: c
        for text in told
        for c in candidates_of(text, inputs, classes, runtimes, device=where, threads=threads)
    }
    first = subject_of(against or told[0])
    host = machine()
    results = measure(candidates, seconds=seconds, blocks=blocks, kinds=KINDS[kind], quiet=as_json)
    rows = [describe(c, results, memory=memory) for c in candidates.values()]
    ratios = compare(candidates, first, results)
    untold = look_deeper(
        candidates,
        results,
        rows,
        wanted,
        classes=classes,
        seconds=seconds,
        blocks=blocks,
        say=lambda line: None if as_json else click.echo(line, err=True),
    )
    asked = {"device": where, "threads": threads, "min_seconds": seconds, "blocks": blocks, "untold": untold}
    found = plain(
        {
            "conditions": asked | host,
            "subjects": rows,
            "comparisons": ratios,
        }
    )
    if as_json:
        print_json(found)
        return
    show_all(found, against=first.text)
    show_depth(found)
    say_next(f"edgestill inspect {subjects[0].rpartition('@')[0] or subjects[0]}")


def measure(
    candidates: Mapping[str, Candidate], *, seconds: float, blocks: int, kinds: tuple[Any, ...], quiet: bool
) -> dict[str, dict[str, Any]]:
    """kind -> subject -> `LatencyResult`, all subjects open at once and taking turns."""
    from profiles.latency import measure_latency

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with ExitStack() as stack:
        runners: dict[str, Any] = {name: stack.enter_context(c.runner) for name, c in candidates.items()}
        feeds = {name: feeds_of(runner) for name, runner in runners.items()}
        if not quiet:
            needed = seconds * len(runners) * len(kinds) * 4 / 3
            click.echo(f"{len(runners)} subjects, {blocks} rounds, about {needed:.0f} s", err=True)
        return {kind: measure_latency(runners, feeds, min_seconds=seconds, blocks=blocks, kind=kind) for kind in kinds}


def describe(candidate: Candidate, results: Mapping[str, Mapping[str, Any]], *, memory: bool) -> dict[str, Any]:
    """One row: what it is, its latencies, and memory and first call from a fresh process or the reason why not."""
    from profiles.errors import ProfileError
    from profiles.isolate import call
    from profiles.memory import why_no_device_memory
    from profiles.size import size_bytes

    runner = candidate.runner
    row: dict[str, Any] = {
        "name": candidate.name,
        "runtime": candidate.runtime,
        "device": runner.device,
        "precision": runner.precision,
        "versions": dict(runner.versions),
        "size_bytes": None if candidate.subject.kind == "model" else size_bytes(candidate.subject.path),
        "latency": [found[candidate.name].row() for found in results.values()],
        "peak_memory_bytes": None,
        "device_memory": None,
        "load_ms": None,
        "first_ms": None,
        "missing": {},
    }
    if not memory:
        row["missing"]["peak_memory_bytes"] = "--no-memory was given"
        return row
    try:
        fresh = call("exporters.probe:cold_start", candidate.request, timeout_s=PROBE_TIMEOUT_S)
        told = {key: fresh.value[key] for key in ("load_ms", "first_ms", "device_memory")}
        row |= {"peak_memory_bytes": fresh.peak_rss_bytes, **told}
        why = why_no_device_memory(candidate.runtime, runner.device)
        if told["device_memory"] is None and why:
            row["missing"]["device_memory"] = why
    except ProfileError as error:
        row["missing"]["peak_memory_bytes"] = str(error)
    return row


def compare(
    candidates: Mapping[str, Candidate], first: Subject, results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each subject against `first` on its own runtime, else on the first runtime that `first` ran on."""
    from profiles.stats import ratio_of_medians

    baselines = {c.runtime: c.name for c in candidates.values() if c.subject == first}
    rows = []
    for kind, found in results.items():
        for name, candidate in candidates.items():
            against = baselines.get(candidate.runtime) or next(iter(baselines.values()))
            if candidate.subject == first:
                against = next(iter(baselines.values()))
            if against == name:
                continue
            a, b = found[name], found[against]
            ratio = ratio_of_medians(b.samples_ns, b.block, a.samples_ns, a.block, confidence=CONFIDENCE)
            rows.append(
                {
                    "kind": kind,
                    "subject": name,
                    "against": against,
                    "speedup_p50": ratio.value,
                    "lower": ratio.lower,
                    "upper": ratio.upper,
                    "confidence": CONFIDENCE,
                    "blocks": ratio.blocks,
                }
            )
    return rows
